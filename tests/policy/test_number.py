"""What is known of a number, before anything is known."""

from policy.number import NumberState, RestrictionType


def test_a_number_of_which_nothing_is_known_claims_nothing() -> None:
    number = NumberState()
    assert number.country is None
    assert number.messaging_limit is None
    assert number.calling == "UNKNOWN"


def test_restrictions_have_metas_names() -> None:
    assert RestrictionType("RESTRICTED_BUSINESS_INITIATED_CALLING") is RestrictionType.BUSINESS_INITIATED
    assert RestrictionType("RESTRICTED_USER_INITIATED_CALLING") is RestrictionType.USER_INITIATED
