"""What a promise of the reliability table is shown with: the size of the run, its seed, and the figures it found.

A row is a test in `tests/chaos`, run at three sizes: `test` with every run of the suite, `short` and `long` by
`make chaos`. Not responsible for running rows and for showing them together (see `loadtest.chaos.rows`).
"""

import operator
import os
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, TypeVar

T = TypeVar("T")

SEED: Final = 20261122


class Scale(StrEnum):
    """How much of a row is run."""

    TEST = "test"  #: seconds; nothing timed is held against its limit
    SHORT = "short"
    LONG = "long"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured figure and what was promised of it, `<= 0` for example; None: nothing was."""

    name: str
    value: float | int | str
    unit: str = ""
    promised: str | None = None
    kept: bool | None = None  #: None: not held against anything

    def __str__(self) -> str:
        said = f"{self.name}: {self.value}{' ' + self.unit if self.unit else ''}"
        return f"{said} (promised {self.promised})" if self.promised else said


@dataclass(slots=True, kw_only=True)
class Chaos:
    """One row's run."""

    scale: Scale
    seed: int
    figures: list[Figure] = field(default_factory=list)

    def size(self, *, test: T, short: T, long: T) -> T:
        """Return what this run is to use."""
        return {Scale.TEST: test, Scale.SHORT: short, Scale.LONG: long}[self.scale]

    def note(self, name: str, value: float | int | str, *, unit: str = "") -> None:
        """Keep a figure that nothing was promised of."""
        self.figures.append(Figure(name=name, value=_rounded(value), unit=unit))

    def promise(
        self,
        name: str,
        value: float,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        unit: str = "",
        timed: bool = False,
    ) -> None:
        """Keep a figure and hold it against its limits; the test fails at its end if one is not kept.

        `timed`: the figure says how fast this machine is; at size `test` it is noted only.
        """
        limits = [
            (compare, sign, limit)
            for compare, sign, limit in ((operator.le, "<=", at_most), (operator.ge, ">=", at_least))
            if limit is not None
        ]
        assert limits, "a promise has a limit"
        kept = all(compare(value, limit) for compare, _, limit in limits)
        self.figures.append(
            Figure(
                name=name,
                value=_rounded(value),
                unit=unit,
                promised=" and ".join(f"{sign} {limit:g}" for _, sign, limit in limits),
                kept=None if timed and self.scale is Scale.TEST else kept,
            )
        )

    @property
    def broken(self) -> list[Figure]:
        """The promises that were not kept."""
        return [figure for figure in self.figures if figure.kept is False]


def scale_from(environ: Any = os.environ) -> Scale:
    """Return the size that CHAOS_SCALE names. Raises: ValueError."""
    return Scale(environ.get("CHAOS_SCALE", Scale.TEST))


def seed_from(environ: Any = os.environ) -> int:
    """Return the seed that CHAOS_SEED names. Raises: ValueError."""
    return int(environ.get("CHAOS_SEED", SEED))


def _rounded(value: float | int | str) -> float | int | str:
    return float(f"{value:.4g}") if isinstance(value, float) else value
