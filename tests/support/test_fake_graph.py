"""The fake Graph API does what tests expect of it."""

import asyncio
import inspect

import pytest

from gateway.common.errors import GraphRefused, GraphUnreachable
from gateway.meta.answers import NumberCallingSettings
from gateway.meta.graph import Graph, GraphClient
from policy.number import CallingStatus
from tests.support.fakes.graph import FakeGraph, refused, unreachable
from tests.support.fakes.graph_server import ACCEPT, CALL, EVERY, NUMBER, SDP, USER


def test_the_fake_has_every_method_of_the_protocol() -> None:
    graph: Graph = FakeGraph()
    for name, method in inspect.getmembers(Graph, inspect.iscoroutinefunction):
        for real in (GraphClient, FakeGraph):
            assert inspect.signature(getattr(real, name)) == inspect.signature(method), (real, name)
    assert graph is not None


async def test_the_fake_records_what_was_asked_and_answers_well() -> None:
    fake = FakeGraph()
    for method in EVERY:
        await method(fake)
    assert len(fake.ops()) == len(EVERY)
    assert fake.only("accept").args == {"call": CALL, "answer_sdp": SDP, "opaque": "trace-1"}
    assert await fake.connect(NUMBER, USER, SDP, "t") != await fake.connect(NUMBER, USER, SDP, "t")
    assert (await fake.settings(NUMBER)) == NumberCallingSettings(calling=CallingStatus.ENABLED)


async def test_the_fake_fails_as_often_as_told() -> None:
    fake = FakeGraph()
    fake.fail("accept", refused("accept", 138004), unreachable("accept"))
    with pytest.raises(GraphRefused):
        await ACCEPT(fake)
    with pytest.raises(GraphUnreachable):
        await ACCEPT(fake)
    await ACCEPT(fake)
    assert fake.ops() == ["accept"] * 3


async def test_the_fake_holds_a_request_and_says_when_it_arrived() -> None:
    fake = FakeGraph()
    release = fake.hold("accept")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(fake.accept(NUMBER, CALL, SDP, "t"))
        assert (await fake.arrival("accept")).args["opaque"] == "t"
        assert not task.done()
        release.set()
    assert task.done()
