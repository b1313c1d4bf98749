"""Reasons, remedies and Meta's codes."""

from policy.reasons import META_CODE, Reason, Remedy


def test_values_are_lower_case_words_that_can_be_stored() -> None:
    for word in [*Reason, *Remedy]:
        assert word.value == word.name.lower()


def test_our_own_reasons_have_no_code_of_metas() -> None:
    ours = {
        Reason.AFTER_DECLINE,
        Reason.COEXISTENCE,
        Reason.DRAINING,
        Reason.INVALID_USER,
        Reason.META_AWAY,
        Reason.OUTSIDE_HOURS,
        Reason.OVERLOADED,
        Reason.STORE_DOWN,
        Reason.TOKEN_REFUSED,
        Reason.UNKNOWN_NUMBER,
    }
    assert set(Reason) - set(META_CODE) == ours
