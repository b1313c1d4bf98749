"""What was appended is there, in order, until it is removed; full, damaged or taken is said in words."""

import errno
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import pytest
from structlog.testing import capture_logs

from gateway.common.errors import SpoolDown
from gateway.intake import spool_file
from gateway.intake.spool_file import FILE, REFUSED_KEPT, RESERVE, Delivery, SpoolFile

AT = datetime(2026, 11, 22, 12, 0, 0, 123_456, tzinfo=UTC)
MB = 1_000_000


def delivery(body: bytes = b"{}", *, after_s: float = 0) -> Delivery:
    return Delivery(received_at=AT + timedelta(seconds=after_s), body=body)


def bodies(file: SpoolFile, limit: int = 1_000, limit_bytes: int = 1_000 * MB) -> list[bytes]:
    return [found.body for found in file.oldest(limit, limit_bytes)]


def fill(file: SpoolFile, body: bytes) -> int:
    """Append until there is no room; return how many there are."""
    for count in range(1_000):
        try:
            file.append([delivery(body)])
        except SpoolDown:
            return count
    raise AssertionError("it is never full")


class OpensSpoolFile(Protocol):
    def __call__(self, folder: Path, *, max_bytes: int) -> SpoolFile: ...


@pytest.fixture
def spool_file_in() -> Iterator[OpensSpoolFile]:
    """Make spool files that are closed with the test."""
    with ExitStack() as files:

        def make(folder: Path, *, max_bytes: int) -> SpoolFile:
            file = SpoolFile(folder, max_bytes=max_bytes)
            files.callback(file.close)
            return file

        yield make


def test_what_was_appended_comes_back_in_order_with_its_time(tmp_path: Path, spool_file_in: OpensSpoolFile) -> None:
    file = spool_file_in(tmp_path, max_bytes=MB)
    file.append([delivery(b"1"), delivery(b"2", after_s=0.5)])
    file.append([delivery(b"3")])
    assert bodies(file) == [b"1", b"2", b"3"]
    assert [found.received_at for found in file.oldest(2, MB)] == [AT, AT + timedelta(seconds=0.5)]


def test_it_is_there_after_the_process_was_gone(tmp_path: Path, spool_file_in: OpensSpoolFile) -> None:
    first = spool_file_in(tmp_path, max_bytes=MB)
    first.append([delivery(b"1"), delivery(b"2")])
    first.refuse(delivery(b"bad"), "why")
    first.close()
    again = spool_file_in(tmp_path, max_bytes=MB)
    again.open()
    assert (again.held.deliveries, again.held.bodies_bytes, again.held.refused) == (2, 2, 1)
    assert again.held.last_seq == again.oldest(9, MB)[-1].seq
    again.append([delivery(b"3")])
    assert bodies(again) == [b"1", b"2", b"3"]


def test_what_is_removed_is_gone_and_the_numbers_go_on(tmp_path: Path, spool_file_in: OpensSpoolFile) -> None:
    file = spool_file_in(tmp_path, max_bytes=MB)
    file.append([delivery(b"1"), delivery(b"2")])
    every = file.oldest(9, MB)
    file.remove(every)
    assert file.held.deliveries == file.held.bodies_bytes == 0
    file.append([delivery(b"3")])
    assert file.oldest(9, MB)[0].seq > every[-1].seq  # else what an earlier process left could not be told apart


def test_few_are_read_at_a_time_but_one_at_least(tmp_path: Path, spool_file_in: OpensSpoolFile) -> None:
    file = spool_file_in(tmp_path, max_bytes=MB)
    file.append([delivery(bytes(100)) for _ in range(5)])
    assert len(bodies(file, limit=3)) == 3
    assert len(bodies(file, limit_bytes=250)) == 2
    assert len(bodies(file, limit_bytes=0)) == 1


def test_a_delivery_is_refused_out_of_line_and_kept_for_a_person(tmp_path: Path, spool_file_in: OpensSpoolFile) -> None:
    file = spool_file_in(tmp_path, max_bytes=MB)
    file.append([delivery(b"1"), delivery(b"2")])
    file.refuse(file.oldest(1, MB)[0], "the database says no")
    assert (bodies(file), file.held.deliveries, file.held.refused) == ([b"2"], 1, 1)
    file.close()
    with sqlite3.connect(tmp_path / FILE) as db:
        assert db.execute("select reason, body from refused").fetchall() == [("the database says no", b"1")]
    db.close()


def test_no_flood_of_refused_ones_fills_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spool_file_in: OpensSpoolFile
) -> None:
    assert REFUSED_KEPT == 1_000
    monkeypatch.setattr(spool_file, "REFUSED_KEPT", 3)
    file = spool_file_in(tmp_path, max_bytes=MB)
    for n in range(10):
        file.refuse(delivery(b"%d" % n), "")
    file.close()
    with sqlite3.connect(tmp_path / FILE) as db:
        assert [row[0] for row in db.execute("select body from refused")] == [b"7", b"8", b"9"]
    db.close()


def test_nobody_else_may_read_it(tmp_path: Path, spool_file_in: OpensSpoolFile) -> None:
    spool_file_in(tmp_path / "new", max_bytes=MB).append([delivery()])
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "new" / FILE).stat().st_mode) == 0o600


def test_every_commit_is_synced(tmp_path: Path, spool_file_in: OpensSpoolFile) -> None:
    file = spool_file_in(tmp_path, max_bytes=MB)
    file.append([delivery()])
    assert file._db is not None
    assert file._db.execute("pragma synchronous").fetchone() == (2,)  # FULL
    assert file._db.execute("pragma journal_mode").fetchone() == ("persist",)


# --- full --------------------------------------------------------------------------------------------


def test_full_is_said_and_nothing_is_half_written(tmp_path: Path, spool_file_in: OpensSpoolFile) -> None:
    file = spool_file_in(tmp_path, max_bytes=300_000)
    count = fill(file, bytes(5_000))
    assert 40 <= count <= 60
    with pytest.raises(SpoolDown, match=r"^the spool is full: .*GATEWAY_SPOOL_MAX_MB"):
        file.append([delivery(b"small"), delivery(bytes(20_000))])
    assert len(bodies(file)) == count == file.held.deliveries
    assert (tmp_path / FILE).stat().st_size <= 300_000


def test_room_comes_back_as_it_drains_and_in_the_end_on_the_disk(tmp_path: Path, spool_file_in: OpensSpoolFile) -> None:
    file = spool_file_in(tmp_path, max_bytes=300_000)
    count = fill(file, bytes(5_000))
    file.remove(file.oldest(10, MB))
    assert fill(file, bytes(5_000)) >= 9
    while file.held.deliveries:
        file.remove(file.oldest(10, MB))
    assert (tmp_path / FILE).stat().st_size < 40_000
    assert fill(file, bytes(5_000)) == count


def test_a_probe_says_whether_there_is_room(tmp_path: Path, spool_file_in: OpensSpoolFile) -> None:
    file = spool_file_in(tmp_path, max_bytes=300_000)
    file.probe()
    assert file.held.deliveries == 0
    fill(file, bytes(5_000))
    with pytest.raises(SpoolDown):
        file.probe()
    assert bodies(file, 1) == [bytes(5_000)]


def test_on_a_full_disk_the_reserve_makes_room_to_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spool_file_in: OpensSpoolFile
) -> None:
    """A disk without room for the journal of a deletion. (`tests/chaos` has a disk that is really full.)"""
    file = spool_file_in(tmp_path, max_bytes=MB)
    file.append([delivery(b"1"), delivery(b"2")])
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    real = file._db

    class Full:
        """Has no room to write as long as the reserve is there."""

        def executemany(self, sql: str, rows: object) -> object:
            assert real is not None
            if (tmp_path / RESERVE).exists():
                raise full
            return real.executemany(sql, rows)  # type: ignore[arg-type]

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

    monkeypatch.setattr(file, "_db", Full())
    with pytest.raises(SpoolDown):
        file.append([delivery(b"3")])  # new ones do not get the reserve
    assert (tmp_path / RESERVE).exists()
    file.remove(file.oldest(1, MB))
    assert not (tmp_path / RESERVE).exists()
    assert bodies(file) == [b"2"]
    file.remove(file.oldest(1, MB))
    assert (tmp_path / RESERVE).exists()  # taken again once there is nothing in line


# --- damaged, or not to be had -----------------------------------------------------------------------


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    match how:
        case "no database":
            path.write_bytes(b"not a database at all" * 400)
        case "cut off":
            path.write_bytes(data[: len(data) // 2])
        case "overwritten":
            path.write_bytes(data[:5_000] + os.urandom(len(data) - 6_000) + data[-1_000:])
        case _:  # a few bytes
            path.write_bytes(data[:700])


@pytest.mark.parametrize("how", ["no database", "cut off", "overwritten", "a few bytes"])
def test_a_damaged_file_is_moved_aside_and_a_new_one_begun(
    tmp_path: Path, how: str, spool_file_in: OpensSpoolFile
) -> None:
    file = spool_file_in(tmp_path, max_bytes=MB)
    for n in range(20):
        file.append([delivery(b"%d" % n * 3_000)])
    file.close()
    damage(tmp_path / FILE, how)
    with capture_logs() as logs:
        again = spool_file_in(tmp_path, max_bytes=MB)
        again.open()
    assert [(line["event"], line["moved_to"]) for line in logs] == [("spool_damaged", f"{FILE}.damaged-1")]
    assert (tmp_path / f"{FILE}.damaged-1").exists()
    again.append([delivery(b"new")])
    assert bodies(again) == [b"new"]


def test_a_second_damaged_file_does_not_take_the_place_of_the_first(
    tmp_path: Path, spool_file_in: OpensSpoolFile
) -> None:
    for _ in range(2):
        (tmp_path / FILE).write_bytes(b"no database" * 1_000)
        file = spool_file_in(tmp_path, max_bytes=MB)
        file.open()
        file.close()
    assert {f"{FILE}.damaged-1", f"{FILE}.damaged-2"} <= {path.name for path in tmp_path.iterdir()}


def test_two_gateways_do_not_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spool_file_in: OpensSpoolFile
) -> None:
    monkeypatch.setattr(spool_file, "LOCK_WAIT_S", 0.0)
    first, second = spool_file_in(tmp_path, max_bytes=MB), spool_file_in(tmp_path, max_bytes=MB)
    first.append([delivery(b"1")])
    with pytest.raises(SpoolDown, match="in use by another gateway"):
        second.append([delivery(b"2")])
    first.close()
    second.append([delivery(b"2")])
    assert bodies(second) == [b"1", b"2"]


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path, spool_file_in: OpensSpoolFile) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolDown, match=os.strerror(errno.ENOTDIR)):
        spool_file_in(tmp_path / "file" / "deeper", max_bytes=MB).open()


def test_after_an_error_the_next_try_begins_anew(tmp_path: Path, spool_file_in: OpensSpoolFile) -> None:
    folder = tmp_path / "folder"
    folder.write_text("")
    file = spool_file_in(folder, max_bytes=MB)
    with pytest.raises(SpoolDown):
        file.append([delivery(b"1")])
    folder.unlink()
    file.append([delivery(b"1")])
    assert bodies(file) == [b"1"]
