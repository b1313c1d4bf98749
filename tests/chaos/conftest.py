"""The rows of the reliability table: their size, their seed, their figures.

A row's test is marked `@pytest.mark.row(number, promise)` and takes the fixture `chaos`. Without CHAOS_SCALE it runs
at size `test`; with CHAOS_OUT each finished row appends one JSON line to that file (see `loadtest.chaos.rows`).
"""

import json
import os
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.harness.chaos import Chaos, Scale, scale_from, seed_from
from tests.support.harness.postgres import database, postgres_server

__all__ = ["database", "postgres_server"]

LIMIT_S: Final = {Scale.SHORT: 300, Scale.LONG: 3_600}

_CHAOS: Final = pytest.StashKey[Chaos]()


@pytest.fixture
def chaos(request: pytest.FixtureRequest) -> Chaos:
    """The row's run: its size and seed, and a place for its figures."""
    node: pytest.Item = request.node
    return node.stash.setdefault(_CHAOS, Chaos(scale=scale_from(), seed=seed_from()))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Above size `test` only rows are run, on uvloop, as in production, and a row may take its time."""
    scale = scale_from()
    if scale is Scale.TEST:
        return
    left_out = []
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        if item.get_closest_marker("row") is None or "[asyncio" in item.name or "-asyncio" in item.name:
            left_out.append(item)
        else:
            item.add_marker(pytest.mark.timeout(LIMIT_S[scale]))
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Fail a row at its end with every promise that was not kept."""
    yield
    run = item.stash.get(_CHAOS, None)
    if run is not None and run.broken:
        pytest.fail("not kept: " + "; ".join(map(str, run.broken)), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    run, marker = item.stash.get(_CHAOS, None), item.get_closest_marker("row")
    if run is not None and marker is not None and (report.when == "call" or report.failed):
        for figure in run.figures:
            report.user_properties.append((figure.name, str(figure)))
        _append(_line(item, marker, run, report))
    return report


def _line(item: pytest.Item, marker: pytest.Mark, run: Chaos, report: pytest.TestReport) -> dict[str, Any]:
    row, promise = marker.args
    return {
        "row": row,
        "promise": promise,
        "test": item.nodeid,
        "kept": report.passed,
        "seconds": round(report.duration, 2),
        "scale": run.scale.value,
        "seed": run.seed,
        "figures": [asdict(figure) for figure in run.figures],
        "failure": "" if report.passed else report.longreprtext[-2_000:],
    }


def _append(line: dict[str, Any]) -> None:
    out = os.environ.get("CHAOS_OUT")
    if out:
        with Path(out).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
