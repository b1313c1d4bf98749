"""What several ask for at once is done once; whoever leaves takes the answer from nobody."""

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest

from gateway.common.background import Background
from gateway.common.single_flight import SingleFlight


class Way:
    """Work that takes until it is told what comes of it."""

    def __init__(self) -> None:
        self.begun = 0
        self.cut = False
        self._outcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def work(self) -> int:
        self.begun += 1
        try:
            return await asyncio.shield(self._outcome)
        except asyncio.CancelledError:
            self.cut = True
            raise

    def ends(self, outcome: int | Exception) -> None:
        if isinstance(outcome, Exception):
            self._outcome.set_exception(outcome)
        else:
            self._outcome.set_result(outcome)


@pytest.fixture
async def flights() -> AsyncIterator[SingleFlight[str, int]]:
    async with Background() as background:
        yield SingleFlight(background.start)


async def test_who_asks_meanwhile_gets_the_answer_that_is_on_its_way(flights: SingleFlight[str, int]) -> None:
    way = Way()
    answers = [flights.begin("a", way.work)]
    for _ in range(2):
        joined = flights.join("b", "a")
        assert joined is not None
        answers.append(joined)
    assert flights.join("b") is None
    way.ends(7)
    assert await asyncio.gather(*answers) == [7, 7, 7]
    assert way.begun == 1


async def test_who_has_the_answer_may_ask_anew_at_once(flights: SingleFlight[str, int]) -> None:
    for outcome in (1, 2):
        way = Way()
        way.ends(outcome)
        assert await flights.begin("a", way.work) == outcome
        assert flights.join("a") is None


async def test_everybody_hears_the_same_error(flights: SingleFlight[str, int]) -> None:
    way, error = Way(), ValueError("no")
    first, second = flights.begin("a", way.work), flights.join("a")
    way.ends(error)
    assert second is not None
    heard = await asyncio.gather(first, second, return_exceptions=True)
    assert all(each is error for each in heard)
    assert flights.join("a") is None


@pytest.mark.parametrize("leaves", [0, 1])
async def test_who_leaves_takes_the_answer_from_nobody(flights: SingleFlight[str, int], leaves: int) -> None:
    way = Way()
    first, second = flights.begin("a", way.work), flights.join("a")
    assert second is not None
    both = [first, second]
    await asyncio.sleep(0)
    both[leaves].cancel()
    await asyncio.sleep(0)
    way.ends(7)
    assert await both[1 - leaves] == 7
    assert both[leaves].cancelled()


@pytest.mark.parametrize("cancel", [True, False])
async def test_an_error_that_nobody_waits_for_is_no_noise(flights: SingleFlight[str, int], cancel: bool) -> None:
    noise: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
    way = Way()
    answer = flights.begin("a", way.work)
    await asyncio.sleep(0)
    if cancel:
        answer.cancel()
    way.ends(ValueError("no"))
    del answer
    for _ in range(10):
        await asyncio.sleep(0)
    assert flights.join("a") is None
    gc.collect()  # asyncio complains of a future that is gone
    assert noise == []


async def test_closing_cuts_the_work_and_who_waits_for_it(flights: SingleFlight[str, int]) -> None:
    way = Way()
    first, second = flights.begin("a", way.work), flights.join("a")
    assert second is not None
    await asyncio.sleep(0)
    flights.close()
    await asyncio.wait([first, second])
    assert (first.cancelled(), second.cancelled(), way.cut) == (True, True, True)
    assert flights.join("a") is None
