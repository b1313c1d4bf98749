"""Call hours of a number as they are written in the settings.

Responsible for their shape, and for turning them into `policy.hours.CallHours`. Not responsible for what they mean.
"""

from datetime import date, time
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from policy.hours import CallHours, Holiday, HoursError, Opening

DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _wall(value: time) -> time:
    if value.tzinfo is not None:
        raise ValueError("expected a time such as 09:00, in the time zone of the hours")
    return value


def _setting(text: str, expected: str, **more: Any) -> Any:
    return Field(description=text, json_schema_extra={"expected": expected}, **more)


Wall = Annotated[time, AfterValidator(_wall)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True, hide_input_in_errors=True)


class OpeningSettings(_Section):
    """One span of a day of the week."""

    day: Annotated[
        Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"], BeforeValidator(_lower)
    ] = _setting("Day of the week.", "a day such as monday")
    opens: Wall = _setting("From.", "a time such as 09:00")
    closes: Wall = _setting("Until; 23:59 is midnight.", "a time such as 18:00")


class HolidaySettings(_Section):
    """One date with hours of its own; without times it is closed."""

    date: date
    opens: Wall | None = _setting("From.", "a time such as 09:00", default=None)
    closes: Wall | None = _setting("Until.", "a time such as 18:00", default=None)


class HoursSettings(_Section):
    """A week in a time zone, and its exceptions."""

    timezone: str = _setting("Time zone.", "a time zone such as America/Sao_Paulo")
    weekly: tuple[OpeningSettings, ...] = _setting("The week.", "a list of day, opens and closes", default=())
    holidays: tuple[HolidaySettings, ...] = _setting("Exceptions.", "a list of date, opens and closes", default=())

    @model_validator(mode="after")
    def _can_be_kept(self) -> "HoursSettings":
        try:
            self.to_hours()
        except HoursError as error:
            raise ValueError(str(error)) from None
        return self

    def to_hours(self) -> CallHours:
        """Return the hours as the rules read them. Raises: HoursError."""
        weekly = (Opening(weekday=DAYS.index(each.day), opens=each.opens, closes=each.closes) for each in self.weekly)
        holidays = (Holiday(day=each.date, opens=each.opens, closes=each.closes) for each in self.holidays)
        return CallHours(timezone=self.timezone, weekly=tuple(weekly), holidays=tuple(holidays))
