"""Decisions are values."""

import pytest

from policy.decision import Allow, Refusal
from policy.reasons import Reason


def test_a_bare_refusal_claims_nothing_that_it_does_not_know() -> None:
    refusal = Refusal(reason=Reason.UNKNOWN_NUMBER, rule="number/known")
    assert (refusal.observed, refusal.limit, refusal.retry_at, refusal.remedy) == (None, None, None, None)


def test_a_plain_yes_has_nothing_to_warn_of() -> None:
    assert Allow() == Allow(warnings=(), permission_expires_at=None)


def test_decisions_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Allow().warnings = ()  # type: ignore[misc]
