"""Key presses: each is reported once, whatever is repeated, late or odd."""

import pytest

from media.dtmf import DIGITS, DtmfReader


def event(number: int, *, duration: int = 160, end: bool = False) -> bytes:
    return bytes([number, 0x80 | 10 if end else 10]) + duration.to_bytes(2, "big")


def press(reader: DtmfReader, number: int, timestamp: int) -> list[str | None]:
    packets = [event(number, duration=160 * n) for n in range(1, 6)] + [event(number, end=True)] * 3
    return [reader.read(timestamp, packet) for packet in packets]


@pytest.mark.parametrize(("number", "digit"), list(enumerate(DIGITS)))
def test_a_press_is_reported_at_its_first_packet_and_not_again(number: int, digit: str) -> None:
    assert press(DtmfReader(), number, 1000) == [digit] + [None] * 7


def test_the_same_key_twice_is_two_presses() -> None:
    reader = DtmfReader()

    assert [press(reader, 5, 1000)[0], press(reader, 5, 9000)[0]] == ["5", "5"]


def test_a_press_is_seen_although_its_beginning_was_lost() -> None:
    assert DtmfReader().read(77, event(11, end=True)) == "#"


def test_a_late_packet_of_an_earlier_press_is_none() -> None:
    reader = DtmfReader()
    press(reader, 1, 1000)
    press(reader, 2, 9000)

    assert reader.read(1000, event(1, end=True)) is None


def test_timestamps_wrap() -> None:
    reader = DtmfReader()

    assert [reader.read(2**32 - 100, event(1)), reader.read(700, event(2))] == ["1", "2"]


def test_a_long_press_goes_on_under_a_new_timestamp() -> None:
    reader = DtmfReader()
    reader.read(1000, event(3))

    assert reader.read(1000 + 0xFFFF, event(3)) is None
    assert reader.read(1000 + 2 * 0xFFFF, event(3)) is None
    assert reader.read(1000 + 3 * 0xFFFF, event(4)) == "4"


@pytest.mark.parametrize("payload", [b"", b"\x01\x00\x00", event(16), event(255)])
def test_what_is_no_key_is_none(payload: bytes) -> None:
    reader = DtmfReader()

    assert reader.read(5, payload) is None
    assert reader.read(5, event(1)) == "1"
