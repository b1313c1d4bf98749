"""The page that shows a call's way names the files that a call really passes, in one direction."""

import ast
import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import orjson

import gateway
from tests.support.fakes.graph_server import SUCCESS, a_server, client_of, ok
from tests.support.harness.doors import doors
from tests.support.harness.world import ANA, NUMBER_ID, World, a_world

ROOT = Path(gateway.__file__).parent
PAGE = (ROOT / "README.md").read_text(encoding="utf-8")


def way() -> list[str]:
    """Return the files that the page names, in its order."""
    (table,) = re.findall(r"<!-- way[^>]*-->\n(.*?)\n<!-- /way -->", PAGE, re.DOTALL)
    return re.findall(r"^\| `([\w/]+\.py)`", table, re.MULTILINE)


def imported_by(file: str) -> set[str]:
    """Return the gateway's files that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("gateway."):
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                found.add("/".join(name.split(".")[1:]) + ".py")
    return found


def test_the_page_names_at_most_ten_files_and_all_are_there() -> None:
    assert 5 <= len(way()) <= 10
    assert all((ROOT / file).is_file() for file in way())


def imported_by_room(file: str) -> set[str]:
    """Return what a file's room imports: some is used through ports that the room's `context.py` names."""
    return set().union(*(imported_by(str(each.relative_to(ROOT))) for each in (ROOT / file).parent.glob("*.py")))


def test_each_file_is_used_by_a_room_before_it_and_by_no_file_after_it() -> None:
    files = way()
    for place, file in enumerate(files):
        if place:
            assert any(file in imported_by_room(before) for before in files[:place]), f"nobody before uses {file}"
        for after in files[place + 1 :]:
            assert file not in imported_by(after), f"{after} points back to {file}"


def connect_webhook(world: World) -> bytes:
    call = {
        "id": "wacid.way",
        "from": ANA.wa_id,
        "to": "551155550100",
        "event": "connect",
        "timestamp": str(int(world.clock.now().timestamp())),
        "direction": "USER_INITIATED",
        "session": {"sdp_type": "offer", "sdp": "v=0 offer"},
    }
    value = {"messaging_product": "whatsapp", "metadata": {"phone_number_id": NUMBER_ID}, "calls": [call]}
    return orjson.dumps(
        {
            "object": "whatsapp_business_account",
            "entry": [{"id": "1", "changes": [{"field": "calls", "value": value}]}],
        }
    )


async def test_a_call_passes_these_files_in_this_order() -> None:
    entered: list[str] = []

    def note(frame: FrameType, event: str, arg: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(str(ROOT)) and frame.f_code.co_name != "__init__":
            name = str(Path(file).relative_to(ROOT))
            if name not in entered:
                entered.append(name)

    async with a_server() as server, client_of(server.url) as graph, a_world(graph=graph) as world:
        server.answers = [ok(SUCCESS)]
        async with doors(world) as opened:
            body = connect_webhook(world)
            sys.setprofile(note)
            try:
                assert await opened.post(body) == 200
                await world.until(lambda: len(server.seen) > 0)
            finally:
                sys.setprofile(None)
    assert server.seen[0][3]["action"] == "pre_accept"
    assert [file for file in entered if file in way()] == way()
