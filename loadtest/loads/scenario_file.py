"""Scenarios by name or from the user's own TOML file; all mistakes are reported at once.

The meaning of a scenario is in `scenarios.py`.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from loadtest.loads.built_in import BUILT_IN, NAMES
from loadtest.loads.scenarios import (
    SEED,
    BadScenario,
    Form,
    MediaStep,
    Scenario,
    Step,
    Threshold,
    Work,
    overall_figures,
    step_figures,
)

_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")
_MOST_TEXT: Final = 200
#: Most arrivals of one step: each is kept in memory.
_MOST_ARRIVALS: Final = 200_000
#: Most live calls; each has a softphone.
_MOST_LIVE: Final = 20_000

#: Least and greatest value of each number; those in `_WHOLE` must be whole numbers.
_STEP: Final = {
    "rate_per_s": (0.1, 10_000.0),
    "seconds": (0.1, 3_600.0),
    "graph_ms": (0.0, 60_000.0),
    "twice": (0.0, 1.0),
    "reordered": (0.0, 1.0),
    "batch": (1, 1_000),
    "live": (0, 10_000),
    "numbers": (1, 1_000),
    "database_ms": (0.0, 10_000.0),
    "database_silent_s": (0.0, 600.0),
}
_MEDIA_STEP: Final = {
    "calls": (1, 500),
    "seconds": (0.0, 600.0),
    "loss": (0.0, 1.0),
    "jitter_ms": (0.0, 1_000.0),
}
_FORM: Final = {
    "talk_s": (0.0, 3_600.0),
    "slots": (1, 10_000),
    "calls": (1, 1_000_000),
    "lanes": (1, 500),
    "contacts": (1_000, 10_000_000),
}
_THRESHOLD: Final = {
    "at_most": (-1e12, 1e12),
    "at_least": (-1e12, 1e12),
    "rate_per_s": (0.1, 10_000.0),
    "graph_ms": (0.0, 60_000.0),
}
_WHOLE: Final = frozenset({"batch", "live", "numbers", "slots", "calls", "lanes", "contacts", "seed"})
#: Keys of a step that only these kinds of work read.
_STEP_OF: Final[Mapping[str, tuple[Work, ...]]] = {
    "batch": (Work.RING, Work.INTAKE),
    "live": (Work.FILL,),
    "numbers": (Work.FILL,),
    "database_ms": (Work.INTAKE,),
    "database_silent_s": (Work.INTAKE,),
}
#: Keys of a form that each kind of work reads, besides `thresholds`; the first one is required.
_OF_WORK: Final[Mapping[Work, tuple[str, ...]]] = {
    Work.RING: ("steps", "talk_s"),
    Work.DIAL: ("steps", "talk_s"),
    Work.FILL: ("steps", "talk_s", "slots"),
    Work.BURST: ("steps",),
    Work.INTAKE: ("steps",),
    Work.SOAK: ("calls", "lanes"),
    Work.GATE: ("contacts",),
    Work.MEDIA: ("anchored",),
}


def find(wanted: Sequence[str]) -> tuple[Scenario, ...]:
    """Return scenarios by name or by the path of a TOML file; all built-in ones if none is named.

    Raises: BadScenario with every mistake in all of them.
    """
    built_in = {scenario.name: scenario for scenario in BUILT_IN}
    found: list[Scenario] = []
    mistakes: list[str] = []
    for word in wanted or NAMES:
        try:
            found.append(built_in[word] if word in built_in else _named(word))
        except BadScenario as bad:
            mistakes += bad.mistakes
    names = [scenario.name for scenario in found]
    mistakes += [f"{name}: named more than once" for name in sorted({one for one in names if names.count(one) > 1})]
    if mistakes:
        raise BadScenario(mistakes)
    return tuple(found)


def _named(word: str) -> Scenario:
    if not word.endswith(".toml"):
        raise BadScenario([f"{word}: unknown scenario; known are {', '.join(NAMES)}, or give the path of a .toml file"])
    return read_scenario(Path(word))


def read_scenario(path: Path) -> Scenario:
    """Read a scenario from a TOML file. Raises: BadScenario with every mistake in it."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadScenario([f"{path}: cannot be read: {error.strerror}"]) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadScenario([f"{path}: not TOML: {error}"]) from error
    return scenario_of(data, str(path))


def scenario_of(data: Mapping[str, Any], where: str) -> Scenario:
    """Return the scenario. Raises: BadScenario."""
    reader = _Reader(where)
    reader.unknown(data, {"name", "what", "work", "seed", "short", "long"}, "")
    name, what = reader.name(data), reader.text(data, "what", default="")
    work = reader.work(data)
    seed = reader.number(data, "seed", (0, 2**63 - 1), "", default=SEED)
    short = reader.form(data, "short", work)
    long = reader.form(data, "long", work) if "long" in data else short
    if reader.mistakes or work is None or short is None or long is None:
        raise BadScenario(reader.mistakes)
    return Scenario(name=name, what=what, work=work, seed=int(seed), short=short, long=long)


@dataclass(slots=True)
class _Reader:
    """Read values and record what is wrong with them; the result for a wrong value does not matter."""

    where: str
    mistakes: list[str] = field(default_factory=list)

    def wrong(self, at: str, what: str) -> None:
        self.mistakes.append(f"{self.where}: {at + ': ' if at else ''}{what}")

    def unknown(self, data: Mapping[str, Any], known: set[str], at: str) -> None:
        for key in sorted(set(data) - known):
            self.wrong(at, f"{key} is unknown; known are {', '.join(sorted(known))}")

    def text(self, data: Mapping[str, Any], key: str, *, default: str | None = None) -> str:
        value = data.get(key, default)
        if not isinstance(value, str) or len(value) > _MOST_TEXT:
            self.wrong(key, f"must be a string of at most {_MOST_TEXT} characters")
            return ""
        return value

    def name(self, data: Mapping[str, Any]) -> str:
        value = data.get("name")
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            self.wrong("name", "must be 1 to 32 of a-z, 0-9 and -, starting with a letter")
        elif value in NAMES:
            self.wrong("name", f"{value} is the name of a built-in scenario")
        return str(value)

    def work(self, data: Mapping[str, Any]) -> Work | None:
        value = data.get("work")
        if value not in list(Work):
            self.wrong("work", f"must be one of {', '.join(Work)}")
            return None
        return Work(value)

    def number(
        self, data: Mapping[str, Any], key: str, limits: tuple[float, float], at: str, *, default: float | None
    ) -> float:
        """Return a number within the limits; `default` None: the key is required."""
        value = data.get(key, default)
        least, most = limits
        kinds = (int,) if key in _WHOLE else (int, float)
        # A bool is an int, and nan compares false with everything.
        if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
            kind = "a whole number" if key in _WHOLE else "a number"
            self.wrong(at, f"{key}: must be {kind} from {least:g} to {most:g}")
            return least
        return value

    def _numbers(self, data: Mapping[str, Any], limits: Mapping[str, tuple[float, float]], at: str) -> dict[str, Any]:
        return {key: self.number(data, key, bounds, at, default=None) for key, bounds in limits.items() if key in data}

    def form(self, data: Mapping[str, Any], key: str, work: Work | None) -> Form | None:
        table = data.get(key)
        if not isinstance(table, dict):
            self.wrong(key, f"the table [{key}] is missing")
            return None
        reads = _OF_WORK[work] if work is not None else ("steps", "anchored", *_FORM)
        self.unknown(table, {"thresholds", *reads}, key)
        if work is not None and reads[0] not in table:
            self.wrong(key, f"{reads[0]} is required for work {work}")
        numbers = self._numbers(table, _FORM, key)
        steps = tuple(self.step(one, at, work) for at, one in self.rows(table, "steps", key))
        thresholds = tuple(self.threshold(one, at, work, steps) for at, one in self.rows(table, "thresholds", key))
        anchored = tuple(self.media_step(one, at) for at, one in self.rows(table, "anchored", key))
        for name in ("steps", "anchored"):
            if table.get(name) == []:
                self.wrong(key, f"{name}: at least one is required")
        form = Form(steps=steps, anchored=anchored, thresholds=thresholds, **numbers)
        if work is Work.FILL:
            self.filled(form, key)
        return form

    def filled(self, form: Form, at: str) -> None:
        """Record steps that cannot follow each other, and more calls than a number has slots."""
        for one, two in pairwise(form.steps):
            if two.live < one.live or two.numbers < one.numbers:
                self.wrong(at, "steps: live and numbers must not fall, because calls stay up")
        most = max((step.live * step.numbers for step in form.steps), default=0)
        if most > _MOST_LIVE:
            self.wrong(at, f"steps: live x numbers is more than {_MOST_LIVE:,}")
        if any(step.live > 2 * form.slots for step in form.steps):
            self.wrong(at, f"steps: live is more than the {2 * form.slots:,} calls that slots allows")

    def rows(self, table: Mapping[str, Any], key: str, at: str) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the tables of a list, each with its position."""
        rows = table.get(key, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            self.wrong(at, f"{key}: must be a list of tables")
            return []
        return [(f"{at}.{key}[{index}]", row) for index, row in enumerate(rows)]

    def step(self, row: Mapping[str, Any], at: str, work: Work | None) -> Step:
        known = {key for key in _STEP if work is None or work in _STEP_OF.get(key, (work,))}
        self.unknown(row, known, at)
        needed: dict[str, Any] = {
            key: self.number(row, key, _STEP[key], at, default=None) for key in ("rate_per_s", "seconds")
        }
        more = self._numbers({key: value for key, value in row.items() if key not in needed}, _STEP, at)
        step = Step(**needed, **more)
        if step.count > _MOST_ARRIVALS:
            self.wrong(at, f"more than {_MOST_ARRIVALS:,} arrivals")
        return step

    def media_step(self, row: Mapping[str, Any], at: str) -> MediaStep:
        self.unknown(row, {"hold", *_MEDIA_STEP}, at)
        hold = row.get("hold", False)
        if not isinstance(hold, bool):
            self.wrong(at, "hold: must be true or false")
        needed: dict[str, Any] = {"calls": self.number(row, "calls", _MEDIA_STEP["calls"], at, default=None)}
        more = self._numbers({key: value for key, value in row.items() if key not in needed}, _MEDIA_STEP, at)
        return MediaStep(hold=hold is True, **needed, **more)

    def threshold(self, row: Mapping[str, Any], at: str, work: Work | None, steps: tuple[Step, ...]) -> Threshold:
        self.unknown(row, {"figure", *_THRESHOLD}, at)
        numbers = self._numbers(row, _THRESHOLD, at)
        if not {"at_most", "at_least"} & set(row):
            self.wrong(at, "at_most or at_least is required")
        figure, rate = row.get("figure"), numbers.get("rate_per_s")
        if work is not None:
            known = overall_figures(work) if rate is None else step_figures(work)
            if not isinstance(figure, str) or figure not in known:
                whose = "the whole; with rate_per_s it is one of a step" if rate is None else "a step"
                self.wrong(at, f"figure: {figure!r} is not a figure of {whose}; known are {', '.join(sorted(known))}")
        graph_ms = numbers.get("graph_ms", 0.0)
        if rate is not None and not any((step.rate_per_s, step.graph_ms) == (rate, graph_ms) for step in steps):
            self.wrong(at, f"no step has rate_per_s {rate:g} and graph_ms {graph_ms:g}")
        return Threshold(figure=str(figure), **numbers)
