"""What is read of a process is what it is; delays are read from the histogram's growth."""

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from loadtest.measure.process import (
    Cores,
    accepted_sockets,
    busy_s,
    children,
    cpu_s,
    descriptors,
    divide_cores,
    lag_buckets,
    lag_share_ms,
    machine_busy_s,
    own_bytes,
    pin,
    postmaster,
    rss_bytes,
    total,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


def test_cpu_time_is_that_of_the_process() -> None:
    assert cpu_s(os.getpid()) == pytest.approx(time.process_time(), abs=0.1)


def test_cpu_time_of_short_spans_is_counted_finely_and_is_part_of_the_machines() -> None:
    before, machine_before = busy_s(os.getpid()), machine_busy_s()
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    used_s = busy_s(os.getpid()) - before
    assert used_s == pytest.approx(0.05, abs=0.03)
    assert machine_busy_s() - machine_before >= used_s - 0.02


def test_memory_and_descriptors_are_counted() -> None:
    assert 10 * 2**20 < rss_bytes(os.getpid()) < 2**34
    assert 2**20 < own_bytes(os.getpid()) <= rss_bytes(os.getpid())
    before = descriptors(os.getpid())
    with open(os.devnull), open(os.devnull):
        assert descriptors(os.getpid()) == before + 2


def test_connections_that_came_in_are_counted_and_those_that_went_out_are_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert accepted_sockets(os.getpid(), (port,)) == 0
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = server.accept()
            with accepted:
                assert accepted_sockets(os.getpid(), (port,)) == 1
                assert accepted_sockets(os.getpid(), (port + 1,)) == 0


def test_a_process_that_is_gone_has_no_children() -> None:
    assert children(2**22 + 1) == []


def test_a_number_in_the_pid_file_that_is_somebody_elses_is_no_postgresql(tmp_path: Path) -> None:
    assert postmaster(tmp_path) is None
    folder = tmp_path / "postgres"
    folder.mkdir()
    (folder / "postmaster.pid").write_text(f"{os.getpid()}\n{folder}\n", encoding="utf-8")
    assert postmaster(tmp_path) is None


def test_a_metric_is_summed_over_its_labels_and_over_no_other_metric() -> None:
    figures = {'calls{direction="in"}': 2.0, 'calls{direction="out"}': 3.0, "calls_lost": 7.0, "free": 1.0}
    assert total(figures, "calls") == 5
    assert total(figures, "free") == 1
    assert total(figures, "busy") == 0


def buckets(*counts: float) -> dict[str, float]:
    bounds = ("0.001", "0.005", "0.1", "+Inf")
    return {
        f'wacg_loop_delay_seconds_bucket{{le="{bound}"}}': count for bound, count in zip(bounds, counts, strict=True)
    } | {"wacg_loop_delay_seconds_count": counts[-1]}


def test_delays_are_those_since_the_last_look() -> None:
    before, after = lag_buckets(buckets(50, 90, 100, 100)), lag_buckets(buckets(149, 190, 200, 200))
    assert lag_share_ms(before, after, 0.5) == 1
    assert lag_share_ms(before, after, 0.99) == 1
    assert lag_share_ms(before, after, 1.0) == 5
    assert lag_share_ms(before, before, 0.99) is None
    assert lag_share_ms({}, {}, 0.99) is None


def test_beyond_the_last_bound_the_last_bound_is_said() -> None:
    assert lag_share_ms({}, lag_buckets(buckets(0, 0, 0, 7)), 0.99) == 100


def test_cores_are_divided_where_there_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 1, 2})
    cores = divide_cores()
    assert cores == Cores(generator=frozenset({1}), gateway=frozenset({2}))
    assert cores.said == "generator and PostgreSQL on core 1, gateway on core 2"
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert divide_cores().said.startswith("not pinned")


def test_a_process_is_pinned_with_its_threads_and_nobody_to_nothing() -> None:
    before = os.sched_getaffinity(0)
    try:
        pin(os.getpid(), frozenset())
        assert os.sched_getaffinity(0) == before
        one = frozenset(sorted(before)[:1])
        pin(os.getpid(), one)
        assert os.sched_getaffinity(0) == one
    finally:
        pin(os.getpid(), frozenset(before))
