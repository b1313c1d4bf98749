"""Every no has one shape, and says when to come again where somebody knows."""

from datetime import UTC, datetime, timedelta

import orjson
import pytest

from gateway.http.problems import Problem, refused
from policy.decision import Refusal
from policy.reasons import Reason, Remedy

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def a_refusal(reason: Reason = Reason.CONNECTED_LIMIT, retry_at: datetime | None = None) -> Refusal:
    return Refusal(reason=reason, rule="contact/x", observed=5, limit=5, retry_at=retry_at, remedy=Remedy.WAIT)


def test_a_problem_has_the_members_of_rfc_9457() -> None:
    response = Problem(422, "bad_request", "The body does not fit.", detail="at $.to").response()
    assert (response.status, response.content_type) == (422, "application/problem+json")
    assert isinstance(response.body, bytes)
    assert orjson.loads(response.body) == {
        "type": "about:blank",
        "title": "The body does not fit.",
        "status": 422,
        "code": "bad_request",
        "detail": "at $.to",
    }


def test_further_members_stand_beside_the_known_ones() -> None:
    assert Problem(403, "x", "X", members={"refusal": 1}).body()["refusal"] == 1
    assert "detail" not in Problem(403, "x", "X").body()


@pytest.mark.parametrize(
    ("status", "given", "header"),
    [(429, None, "5"), (503, None, "5"), (429, 30, "30"), (429, 0, "0"), (403, None, None), (403, 7, "7")],
)
def test_who_may_come_again_is_told_when(status: int, given: int | None, header: str | None) -> None:
    response = Problem(status, "x", "X", retry_after_s=given).response()
    assert response.headers.get("Retry-After") == header


def test_who_is_not_known_is_told_how_to_be() -> None:
    assert Problem(401, "unauthorized", "X").response().headers["WWW-Authenticate"] == "Bearer"
    assert "WWW-Authenticate" not in Problem(403, "x", "X").response().headers


@pytest.mark.parametrize(
    ("after_s", "header"), [(0.0, "0"), (-5.0, "0"), (0.001, "1"), (1.0, "1"), (86_400.5, "86401"), (None, "5")]
)
def test_retry_after_is_the_first_whole_second_that_is_not_too_early(after_s: float | None, header: str) -> None:
    retry_at = NOW + timedelta(seconds=after_s) if after_s is not None else None
    assert refused(a_refusal(retry_at=retry_at), now=NOW).response().headers["Retry-After"] == header


@pytest.mark.parametrize("reason", list(Reason))
def test_every_refusal_is_a_problem_with_its_figures(reason: Reason) -> None:
    problem = refused(a_refusal(reason), now=NOW)
    assert problem.code == reason.value
    assert 400 <= problem.status < 600
    assert problem.body()["refusal"]["observed"] == 5
    assert problem.title.endswith(".")


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (Reason.NO_PERMISSION, 403),
        (Reason.UNKNOWN_NUMBER, 404),
        (Reason.INVALID_USER, 422),
        (Reason.USER_BUSY, 409),
        (Reason.NUMBER_BUSY, 429),
        (Reason.DRAINING, 503),
    ],
)
def test_the_status_tells_the_kind_of_no(reason: Reason, status: int) -> None:
    assert refused(a_refusal(reason), now=NOW).status == status
