"""What is built in can be run, and a scenario of one's own is read with every mistake named at once."""

import re
from pathlib import Path

import pytest

from loadtest.loads.built_in import BUILT_IN, NAMES
from loadtest.loads.scenario_file import find, read_scenario
from loadtest.loads.scenarios import (
    BadScenario,
    Form,
    Scenario,
    Step,
    Threshold,
    Work,
    overall_figures,
    step_figures,
)

GOOD = """
name = "evening"
what = "our evening peak"
work = "ring"
seed = 7

[short]
talk_s = 0.5
steps = [{rate_per_s = 20, seconds = 5, graph_ms = 80}, {rate_per_s = 40, seconds = 5, twice = 0.1}]
thresholds = [
    {figure = "accept_p99_ms", at_most = 250, rate_per_s = 20, graph_ms = 80},
    {figure = "saturation_per_s", at_least = 40},
]
"""

BAD = """
name = "Ring!"
work = "ring"
seed = -1
colour = "red"

[short]
calls = 10
talk_s = "long"
steps = [
    {rate_per_s = 0, seconds = 5, twice = 1.5},
    {seconds = true, batch = 1.5, speed = 3},
]
thresholds = [
    {figure = "accept_p98_ms", at_most = 1, rate_per_s = 20},
    {figure = "saturation_per_s"},
    {figure = [1], at_most = 1},
]
"""

FALLING = """
name = "a"
work = "fill"
[short]
steps = [{rate_per_s = 1, seconds = 1, live = 9}, {rate_per_s = 1, seconds = 1, live = 8}]
"""


def written(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(path: Path) -> list[str]:
    with pytest.raises(BadScenario) as caught:
        read_scenario(path)
    assert all(line.startswith(str(path)) for line in caught.value.mistakes)
    return [line.removeprefix(f"{path}: ") for line in caught.value.mistakes]


@pytest.mark.parametrize("scenario", BUILT_IN, ids=lambda scenario: scenario.name)
@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
def test_thresholds_of_what_is_built_in_are_about_figures_and_steps_that_there_are(
    scenario: Scenario, long: bool
) -> None:
    form = scenario.form(long=long)
    for threshold in form.thresholds:
        known = overall_figures(scenario.work) if threshold.rate_per_s is None else step_figures(scenario.work)
        assert threshold.figure in known
        assert threshold.said
        at = {(step.rate_per_s, step.graph_ms) for step in form.steps}
        assert threshold.rate_per_s is None or (threshold.rate_per_s, threshold.graph_ms) in at
    assert form.said


def test_a_file_becomes_a_scenario(tmp_path: Path) -> None:
    scenario = read_scenario(written(tmp_path, GOOD))
    steps = (Step(rate_per_s=20, seconds=5, graph_ms=80), Step(rate_per_s=40, seconds=5, twice=0.1))
    thresholds = (
        Threshold(figure="accept_p99_ms", at_most=250, rate_per_s=20, graph_ms=80),
        Threshold(figure="saturation_per_s", at_least=40),
    )
    form = Form(steps=steps, talk_s=0.5, thresholds=thresholds)
    wanted = Scenario(name="evening", what="our evening peak", work=Work.RING, seed=7, short=form, long=form)
    assert scenario == wanted
    assert scenario.short.steps[0].count == 100
    assert scenario.short.said == "20 a second, Graph 80 ms, 5 s each\n40 a second, 5 s each"


def test_everything_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    found = mistakes(written(tmp_path, BAD))
    wanted = [
        "colour is unknown",
        "name: must be 1 to 32 of a-z",
        "seed: must be a whole number from 0",
        "short: calls is unknown; known are steps, talk_s, thresholds",
        "short: talk_s: must be a number from 0 to 3600",
        "short.steps[0]: rate_per_s: must be a number from 0.1 to 10000",
        "short.steps[0]: twice: must be a number from 0 to 1",
        "short.steps[1]: speed is unknown",
        "short.steps[1]: rate_per_s: must be a number from 0.1",
        "short.steps[1]: seconds: must be a number from 0.1",
        "short.steps[1]: batch: must be a whole number from 1 to 1000",
        "short.thresholds[0]: figure: 'accept_p98_ms' is not a figure of a step",
        "short.thresholds[0]: no step has rate_per_s 20 and graph_ms 0",
        "short.thresholds[1]: at_most or at_least is required",
        "short.thresholds[2]: figure: [1] is not a figure of the whole",
    ]
    for text in wanted:
        assert [line for line in found if line.startswith(text)], text
    assert len(found) == len(wanted)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = [", "not TOML"),
        ('name = "a"\nwork = "wish"\n[short]\n', "work: must be one of ring, dial"),
        ('name = "a"\nwork = "ring"\n', "short: the table [short] is missing"),
        ('name = "a"\nwork = "ring"\n[short]\n', "short: steps is required for work ring"),
        ('name = "a"\nwork = "ring"\n[short]\nsteps = []\n', "short: steps: at least one is required"),
        ('name = "a"\nwork = "ring"\n[short]\nsteps = 3\n', "short: steps: must be a list of tables"),
        ('name = "a"\nwork = "soak"\n[short]\nlanes = 3\n', "short: calls is required for work soak"),
        ('name = "ring"\nwork = "soak"\n[short]\ncalls = 3\n', "name: ring is the name of a built-in"),
        ('name = "a"\nwhat = 3\nwork = "soak"\n[short]\ncalls = 3\n', "what: must be a string of at most"),
        (
            'name = "a"\nwork = "intake"\n[short]\nsteps = [{rate_per_s = 1000, seconds = 3600}]\n',
            "short.steps[0]: more than 200,000 arrivals",
        ),
        (
            'name = "a"\nwork = "ring"\n[short]\nsteps = [{rate_per_s = 1, seconds = 1, live = 5}]\n',
            "short.steps[0]: live is unknown; known are batch, ",
        ),
        (
            'name = "a"\nwork = "fill"\n[short]\nsteps = [{rate_per_s = 1, seconds = 1, database_ms = 5}]\n',
            "short.steps[0]: database_ms is unknown",
        ),
        (FALLING, "short: steps: live and numbers must not fall, because calls stay up"),
        (
            'name = "a"\nwork = "fill"\n[short]\nslots = 4\nsteps = [{rate_per_s = 1, seconds = 1, live = 9}]\n',
            "short: steps: live is more than the 8 calls that slots allows",
        ),
        (
            'name = "a"\nwork = "fill"\n[short]\nsteps = [{rate_per_s = 1, seconds = 1, live = 999, numbers = 999}]\n',
            "short: steps: live x numbers is more than 20,000",
        ),
        ('name = "a"\nwork = "gate"\n[short]\ncontacts = nan\n', "short: contacts: must be a whole number"),
    ],
)
def test_each_mistake_says_what_is_needed(tmp_path: Path, text: str, said: str) -> None:
    assert any(line.startswith(said) for line in mistakes(written(tmp_path, text)))


def test_all_that_was_named_is_found_or_all_that_was_not_is_said(tmp_path: Path) -> None:
    mine = written(tmp_path, GOOD)
    assert [one.name for one in find(["gate", str(mine)])] == ["gate", "evening"]
    assert tuple(one.name for one in find([])) == NAMES
    bad = written(tmp_path, "name = [", "bad.toml")
    with pytest.raises(BadScenario) as caught:
        find(["rign", str(bad), "ring", "ring", str(tmp_path / "none.toml")])
    found = caught.value.mistakes
    assert found[0] == f"rign: unknown scenario; known are {', '.join(NAMES)}, or give the path of a .toml file"
    assert found[1].startswith(f"{bad}: not TOML")
    assert found[2].endswith("cannot be read: No such file or directory")
    assert found[3:] == ("ring: named more than once",)


def test_the_pages_example_can_be_run(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[3] / "loadtest" / "README.md").read_text(encoding="utf-8")
    (example,) = (text for text in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "rate_per_s" in text)
    assert read_scenario(written(tmp_path, example)).name == "evening"


def test_what_sets_a_step_apart_is_said() -> None:
    step = Step(rate_per_s=50, seconds=1, batch=20, graph_ms=80)
    assert (step.label, step.series) == ("50/s, batches of 1-20, Graph 80 ms", "batches of 1-20, Graph 80 ms")
    assert Step(rate_per_s=50, seconds=1).label == "50/s"
    assert Step(rate_per_s=5, seconds=1, live=2_000).series == "2,000 calls up on one number"
    assert Step(rate_per_s=5, seconds=1, live=20, numbers=500).series == "20 calls up on each of 500 numbers"
    late, silent = Step(rate_per_s=5, seconds=1, database_ms=20), Step(rate_per_s=5, seconds=1, database_silent_s=3)
    assert (late.series, silent.series) == ("PostgreSQL 20 ms later", "PostgreSQL silent for 3 s")


def test_a_figure_that_was_not_measured_misses_its_threshold() -> None:
    threshold = Threshold(figure="lost", at_least=0, at_most=2)
    values = (0, 2, 2.1, -0.1, None, float("nan"))
    assert [threshold.met(value) for value in values] == [True, True, False, False, False, False]
    assert threshold.said == ">= 0 and <= 2"


MEDIA = """
name = "lines"
work = "media"
[short]
anchored = [{calls = 20, seconds = 1, loss = 0.02, jitter_ms = 30}, {calls = 40, seconds = 2.5, hold = true}]
thresholds = [{figure = "calls_held", at_least = 40}]
"""


def test_a_scenario_of_calls_with_media_is_read(tmp_path: Path) -> None:
    form = read_scenario(written(tmp_path, MEDIA)).short
    assert [step.label for step in form.anchored] == ["20 calls, 2 % loss, 0-30 ms jitter", "40 calls, hold"]
    assert [step.faulty for step in form.anchored] == [True, False]
    assert form.said == "20 calls, 2 % loss, 0-30 ms jitter\n40 calls, hold"


def test_every_mistake_about_calls_with_media_is_named(tmp_path: Path) -> None:
    bad = 'name = "a"\nwork = "media"\n[short]\ntalk_s = 1\n'
    bad += "anchored = [{calls = 1.5, hold = 1, loss = 2, rate = 3}, {}]\n"
    bad += 'thresholds = [{figure = "calls_held", at_least = 1, rate_per_s = 5}]\n'
    with pytest.raises(BadScenario) as raised:
        read_scenario(written(tmp_path, bad))
    said = "\n".join(raised.value.mistakes)
    for text in (
        "short: talk_s is unknown",
        "short.anchored[0]: calls: must be a whole number from 1 to 500",
        "short.anchored[0]: hold: must be true or false",
        "short.anchored[0]: loss: must be a number from 0 to 1",
        "short.anchored[0]: rate is unknown",
        "short.anchored[1]: calls: must be a whole number",
        "short.thresholds[0]: figure: 'calls_held' is not a figure of a step",
    ):
        assert text in said
    empty = 'name = "a"\nwork = "media"\n[short]\nanchored = []\n'
    with pytest.raises(BadScenario, match="anchored: at least one"):
        read_scenario(written(tmp_path, empty))
