"""What the gate can be asked."""

from policy.request import AskPermission, PlaceCall, ReceiveCall


def test_a_plain_request_has_nothing_in_flight_and_a_gateway_that_works() -> None:
    assert PlaceCall() == PlaceCall(in_flight=0, user_busy=False, placed_today=0, store_up=True, draining=False)
    assert AskPermission() == AskPermission(form=None, in_flight=0, store_up=True, draining=False)
    assert ReceiveCall() == ReceiveCall(draining=False)
