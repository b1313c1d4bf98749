"""The calls that a number placed are read from their index, however many calls there are."""

import pytest

from gateway.store.queries import QUERIES
from tests.support.harness.postgres import execute

_MANY_CALLS = """
insert into calls (call_id, version, phone_number_id, direction, state, wa_id, created_at, meta_call_id)
select n::text, 1, '1', case when n % 2 = 0 then 'BUSINESS_INITIATED' else 'USER_INITIATED' end, 'ended', '5511',
    timestamptz '2026-11-22 12:00Z' - n * interval '1 minute', 'wacid.' || n
from generate_series(1, 20000) as n
"""


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_placed_calls_are_one_read_of_their_index(database: str) -> None:
    await execute(database, _MANY_CALLS)
    await execute(database, "analyze calls")
    query = QUERIES["placed_calls"].replace("$1::text[]", "array['1']").replace("$2", "timestamptz '2026-11-21 12:00Z'")
    plan = "\n".join(row[0] for row in await execute(database, "explain " + query))
    assert "calls_placed" in plan
    assert "Seq Scan" not in plan
