"""Dedupe keys in memory: the last ones are known, and no more than so many are kept."""

from gateway.intake.dedupe import SeenEvents


def test_the_last_keys_are_known_and_old_ones_go() -> None:
    seen = SeenEvents(10)
    for n in range(1_000):
        seen.add(f"key {n}", durable=False)
        assert all(f"key {m}" in seen for m in range(max(0, n - 9), n + 1))
    assert sum(f"key {n}" in seen for n in range(1_000)) <= 20


def test_a_key_becomes_durable_and_stays_so_when_it_grows_old() -> None:
    seen = SeenEvents(2)
    seen.add("one", durable=False)
    assert "one" in seen
    assert not seen.is_durable("one")
    seen.add("one", durable=True)
    seen.add("two", durable=False)
    assert seen.is_durable("one")
    assert not seen.is_durable("two")
    seen.add("two", durable=True)
    assert seen.is_durable("two")


def test_a_key_may_hold_anything() -> None:
    seen = SeenEvents(10)
    seen.add("\ud800 \0", durable=True)
    assert seen.is_durable("\ud800 \0")
    assert not seen.is_durable("\ud800")
    seen.clear()
    assert "\ud800 \0" not in seen
