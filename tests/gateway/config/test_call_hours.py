"""Call hours and what else may be said of a number by hand: read from TOML, and every mistake named."""

from datetime import date, time
from pathlib import Path

import pytest

from gateway.config.loading import check
from gateway.config.settings import NumberSettings
from policy.hours import CallHours, Holiday, Opening

HEAD = """
app_secret = "x"
verify_token = "x"
access_token = "t"
operators = { ana = "12345678" }
[[numbers]]
phone_number_id = "1"
phone_number = "+551155550100"
"""


def number(folder: Path, text: str) -> NumberSettings:
    (folder / "gateway.toml").write_text(HEAD + text)
    report = check(environ={}, folder=folder)
    assert report.settings is not None, report.problems
    return report.settings.numbers[0]


def problem(folder: Path, text: str) -> str:
    (folder / "gateway.toml").write_text(HEAD + text)
    (line,) = check(environ={}, folder=folder).problems
    return line


def test_hours_are_written_as_text_or_as_toml_times(tmp_path: Path) -> None:
    given = number(
        tmp_path,
        """
        enforce_hours = ["USER_INITIATED"]
        [numbers.call_hours]
        timezone = "America/Sao_Paulo"
        weekly = [{ day = "Monday", opens = "09:00", closes = "18:00" }, { day = "sunday", opens = 10:00:00, closes = 23:59:00 }]
        holidays = [{ date = 2026-12-25 }, { date = "2026-12-24", opens = "09:00", closes = "12:00" }]
        """,  # noqa: E501 - a TOML table stands in one line
    )
    assert given.enforce_hours == ("USER_INITIATED",)
    assert given.call_hours is not None
    assert given.call_hours.to_hours() == CallHours(
        timezone="America/Sao_Paulo",
        weekly=(
            Opening(weekday=0, opens=time(9), closes=time(18)),
            Opening(weekday=6, opens=time(10), closes=time(23, 59)),
        ),
        holidays=(
            Holiday(day=date(2026, 12, 25)),
            Holiday(day=date(2026, 12, 24), opens=time(9), closes=time(12)),
        ),
    )


@pytest.mark.parametrize(
    ("hours", "said"),
    [
        ('timezone = "America/Nowhere"', "numbers[0].call_hours in gateway.toml: unknown time zone"),
        ("weekly = []", "numbers[0].call_hours.timezone in gateway.toml is not set: expected a time zone"),
        ('timezone = "UTC"\nclosed = 1', "numbers[0].call_hours.closed in gateway.toml: unknown"),
        (
            'timezone = "UTC"\nweekly = [{ day = "mon", opens = "09:00", closes = "18:00" }]',
            "numbers[0].call_hours.weekly[0].day in gateway.toml='mon': expected a day such as monday",
        ),
        (
            'timezone = "UTC"\nweekly = [{ day = "monday", opens = "9am", closes = "18:00" }]',
            "numbers[0].call_hours.weekly[0].opens in gateway.toml='9am': expected a time such as 09:00",
        ),
        (
            'timezone = "UTC"\nweekly = [{ day = "monday", opens = "09:00Z", closes = "18:00" }]',
            "numbers[0].call_hours.weekly[0].opens in gateway.toml='09:00Z': expected a time such as 09:00, in the",
        ),
        (
            'timezone = "UTC"\nweekly = [{ day = "monday", opens = "19:00", closes = "18:00" }]',
            "numbers[0].call_hours in gateway.toml: opens at 19:00 but closes at 18:00",
        ),
        (
            'timezone = "UTC"\nholidays = [{ date = "2026-12-24", opens = "09:00" }]',
            "numbers[0].call_hours in gateway.toml: holiday 2026-12-24 needs both times or neither",
        ),
        (
            'timezone = "UTC"\nweekly = [{ day = "monday", opens = "09:00", closes = "18:00", close = 1 }]',
            "numbers[0].call_hours.weekly[0].close in gateway.toml: unknown; did you mean closes?",
        ),
    ],
)
def test_hours_that_cannot_be_kept_are_told(tmp_path: Path, hours: str, said: str) -> None:
    assert problem(tmp_path, "[numbers.call_hours]\n" + hours).startswith(said)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('calling = "ON"', "numbers[0].calling in gateway.toml='ON': expected ENABLED or DISABLED"),
        ('country = "br"', "numbers[0].country in gateway.toml='br': expected two letters such as BR"),
        ('sip = "maybe"', "numbers[0].sip in gateway.toml='maybe': expected true or false"),
        ('enforce_hours = ["X"]', "numbers[0].enforce_hours[0] in gateway.toml='X': expected a list of"),
    ],
)
def test_what_cannot_be_said_of_a_number_is_told(tmp_path: Path, line: str, said: str) -> None:
    assert problem(tmp_path, line).startswith(said)
