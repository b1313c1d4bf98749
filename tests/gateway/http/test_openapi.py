"""The description is of the routes that there are, and is what OpenAPI 3.1 and JSON Schema say it should be."""

import re
from typing import Any

import msgspec
import orjson
import pytest

from gateway.http.openapi import OPERATIONS, api_document, wire_document
from gateway.wire import messages as msg
from tests.support.harness.doors import doors
from tests.support.harness.world import a_world

DOCUMENT = orjson.loads(api_document("1.2.3"))
WIRE = orjson.loads(wire_document())


async def test_every_route_is_described_and_every_description_is_a_route() -> None:
    async with a_world() as world, doors(world) as opened:
        routes = {
            (route.method, route.resource.canonical)
            for route in opened.app.router.routes()
            if route.method != "HEAD" and route.resource is not None
        }
    assert routes == {(operation.method, operation.path) for operation in OPERATIONS}
    assert len(OPERATIONS) == len(routes)


@pytest.mark.parametrize(
    ("path", "document", "kind"),
    [
        ("/openapi.json", DOCUMENT["paths"], "application/json"),
        ("/v1/softphone.schema.json", WIRE["$defs"], "application/schema+json"),
    ],
)
async def test_the_documents_are_served(path: str, document: Any, kind: str) -> None:
    async with a_world() as world, doors(world) as opened, opened.client.get(path) as response:
        assert (response.status, response.content_type) == (200, kind)
        body = await response.json(content_type=None)
        assert document in body.values()


def test_the_document_has_the_structure_of_openapi_3_1() -> None:
    assert re.fullmatch(r"3\.1\.\d+", DOCUMENT["openapi"])
    assert DOCUMENT["info"] == {"title": "WhatsApp call gateway", "version": "1.2.3"}
    for path, item in DOCUMENT["paths"].items():
        assert path.startswith("/")
        for method, operation in item.items():
            assert method in {"get", "post", "put", "patch", "delete"}
            assert operation["summary"]
            is_operation(path, operation)


def is_operation(path: str, operation: dict[str, Any]) -> None:
    names = [parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"]
    assert names == re.findall(r"{(\w+)}", path)
    for parameter in operation["parameters"]:
        assert parameter["in"] in {"path", "query", "header"}
        assert parameter["schema"]
        assert parameter["in"] != "path" or parameter["required"]
    assert operation["responses"]
    for status, response in operation["responses"].items():
        assert re.fullmatch(r"[1-5]\d\d", status)
        assert response["description"]
        for kind, content in response.get("content", {}).items():
            assert "/" in kind
            assert set(content) <= {"schema"}


@pytest.mark.parametrize("document", [DOCUMENT, WIRE], ids=["openapi", "wire"])
def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = re.findall(r'"(?:\$ref)":"#/([^"]+)"', orjson.dumps(document).decode())
    assert found
    for reference in found:
        place: Any = document
        for part in reference.split("/"):
            place = place[part]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: f"{operation.method} {operation.path}")
def test_a_route_with_a_key_says_so(operation: Any) -> None:
    described = DOCUMENT["paths"][operation.path][operation.method.lower()]
    assert ("security" in described) is operation.keyed
    assert not operation.keyed or "401" in described["responses"]
    assert ("requestBody" in described) is (operation.body is not None)


@pytest.mark.parametrize("kind", msg.Message.__subclasses__(), ids=lambda kind: str(kind.__name__))
def test_every_message_of_the_wire_is_in_its_schema(kind: type[msg.Message]) -> None:
    described = WIRE["$defs"][kind.__name__]["properties"]["type"]
    assert described == {"enum": [kind.__struct_config__.tag]}


def test_what_a_softphone_sends_fits_the_requests_only() -> None:
    names = {reference["$ref"].rsplit("/", 1)[1] for reference in WIRE["$defs"]["Request"]["anyOf"]}
    assert {"Hello", "Bye"} <= names
    assert not names & {"Incoming", "Ok", "Failed"}
    assert msgspec.json.decode(b'{"type":"bye","id":1}', type=msg.Bye).id == 1
