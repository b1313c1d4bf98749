"""Which part may import which, and what a pure module may not touch."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"gateway", "media", "policy", "loadtest"}

#: package -> what it may import of ours; a dotted name allows that module only.
ALLOWED = {
    "policy": set(),
    "media": set(),
    "gateway": {"policy", "media.engine", "media.errors", "media.sdp"},
    "loadtest": set(),
}
#: The rooms of the gateway from the bottom up, and which others each may use besides `policy` and `media`.
GATEWAY_ROOMS = {
    "common": set(),
    "config": {"common"},
    "meta": {"common"},
    "callflow": {"common"},
    "store": {"common", "callflow"},
    "wire": {"common", "callflow", "store"},
    "numbers": {"common", "config", "meta", "store", "wire"},
    "contacts": {"common", "meta", "store", "numbers"},
    "calls": {"common", "meta", "callflow", "store", "wire", "numbers", "contacts"},
    "operators": {"common", "callflow", "wire", "numbers", "calls"},
    "admission": {"common", "meta", "callflow", "store", "wire", "numbers", "contacts", "calls", "operators"},
    "intake": {"common", "meta", "callflow", "store", "numbers", "contacts", "calls", "admission"},
    "softphone": {"common", "callflow", "store", "wire", "numbers", "calls", "operators", "admission"},
    "http": {
        *("common", "callflow", "store", "wire", "numbers", "contacts", "calls", "admission"),
        *("intake", "softphone"),
    },
}
#: The rooms of the load suite from the bottom up. The simulator stands on nothing that knows a gateway.
LOADTEST_ROOMS = {
    "common": set(),
    "webrtc": {"common"},
    "net": {"common", "webrtc"},
    "simulator": {"common", "webrtc", "net"},
    "operators": {"common", "webrtc", "net"},
    "measure": {"common", "net", "simulator"},
    "loads": {"common", "webrtc", "net", "simulator", "operators", "measure"},
    "compare": {"common", "webrtc", "net", "simulator", "operators", "measure", "loads"},
    "chaos": {"measure"},
}
ROOMS = {"gateway": GATEWAY_ROOMS, "loadtest": LOADTEST_ROOMS}
#: What the signalling process must never load: it runs no ICE, DTLS, SRTP or codec.
HEAVY = {"aiortc", "aioice", "av", "pylibsrtp", "OpenSSL"}
#: A pure module has values in and values out.
IMPURE = {"asyncio", "time", "random", "logging", "structlog", "socket", "os", "secrets", "subprocess", "threading"}
#: Pure with all that they import of ours.
PURE_THROUGHOUT = (
    *sorted((ROOT / "policy").glob("*.py")),
    *sorted((ROOT / "gateway" / "callflow").glob("*.py")),
    *(ROOT / "media" / f"{name}.py" for name in ("sdp", "negotiation", "model", "stats", "errors")),
)
#: Pure themselves; what they import of ours need not be.
PURE = (
    *PURE_THROUGHOUT,
    *(
        ROOT / "gateway" / f"{name}.py"
        for name in (
            "common/ids",
            "common/backoff",
            "common/rate_limit",
            "meta/events",
            "meta/number_events",
            "meta/shapes",
            "store/records",
            "wire/messages",
            "wire/views",
            "numbers/facts",
            "numbers/placed_calls",
            "numbers/views",
            "contacts/drift",
            "contacts/refusal_facts",
            "contacts/webhook_facts",
            "operators/ring_policy",
            "admission/overload",
        )
    ),
)
FILES = [path for package in sorted(OURS) for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in FILES}


def modules_used(path: Path) -> set[str]:
    """Return the modules of ours that a file imports, for types alone too; `from package import module` counts."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (members & MODULES.keys()) or {node.module}
    return (found & MODULES.keys()) - {name_of(path)}


def room_of(module: str) -> str | None:
    """Return the room of a module, None for one that stands beside the rooms."""
    part, _, rest = module.partition(".")
    room = rest.partition(".")[0]
    return room if room in ROOMS.get(part, {}) else None


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_in_one_direction(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for module in imports(path):
        other = module.split(".")[0]
        if other in OURS - {package}:
            assert other in ALLOWED[package] or module in ALLOWED[package], f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", [path for path in FILES if room_of(name_of(path))], ids=name_of)
def test_a_room_uses_only_the_rooms_below_it(path: Path) -> None:
    name = name_of(path)
    part, room = name.split(".")[0], room_of(name)
    assert room is not None
    for module in modules_used(path):
        if module.split(".")[0] == part:
            assert room_of(module) in {room, *ROOMS[part][room]}, f"{name} uses {module}"


@pytest.mark.parametrize("part", ROOMS)
def test_every_room_is_in_the_table_and_the_table_has_no_circle(part: str) -> None:
    folders = {path.name for path in (ROOT / part).iterdir() if (path / "__init__.py").is_file()}
    assert folders == ROOMS[part].keys()
    below: set[str] = set()
    for room, used in ROOMS[part].items():
        assert used <= below, f"{part}/{room} uses what stands above it"
        below.add(room)


@pytest.mark.parametrize("part", sorted(OURS))
def test_no_modules_import_each_other_in_a_circle(part: str) -> None:
    done: set[str] = set()

    def walk(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for used in modules_used(MODULES[module]):
                walk(used, (*way, module))
            done.add(module)

    for module in MODULES:
        if module.split(".")[0] == part:
            walk(module, ())


@pytest.mark.parametrize("path", PURE_THROUGHOUT, ids=name_of)
def test_a_pure_room_uses_nothing_impure_however_far_away(path: Path) -> None:
    ours, waiting = {name_of(path)}, [path]
    while waiting:
        new = modules_used(waiting.pop()) - ours
        ours |= new
        waiting += [MODULES[module] for module in new]
    touched = {module for each in ours for used in imports(MODULES[each]) if (module := used.split(".")[0]) in IMPURE}
    assert not touched


@pytest.mark.parametrize("path", PURE, ids=name_of)
def test_a_pure_module_touches_no_clock_loop_log_or_network(path: Path) -> None:
    assert not {module.split(".")[0] for module in imports(path)} & IMPURE


@pytest.mark.parametrize("path", sorted((ROOT / "policy").rglob("*.py")), ids=name_of)
def test_the_policy_needs_the_standard_library_only(path: Path) -> None:
    outside = {module.split(".")[0] for module in imports(path)} - set(sys.stdlib_module_names) - {"policy"}
    assert not outside


def reachable(start: str) -> set[str]:
    """Every module, ours or not, that importing `start` loads, as far as our own files say."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        path = ROOT / Path(*module.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                waiting.extend(imports(file))
    return seen


def test_the_signalling_process_loads_no_media_library() -> None:
    loaded = {module.split(".")[0] for module in reachable("gateway.app") | reachable("gateway.__main__")}
    assert not loaded & HEAVY


def test_the_walk_sees_what_the_worker_loads() -> None:
    assert "aiortc" in {module.split(".")[0] for module in reachable("media.worker")}


def test_no_module_is_too_long() -> None:
    long = {name_of(path): n for path in FILES if (n := len(path.read_text().splitlines())) > 600}
    assert not long


#: Functions over 80 lines, and why.
LONG_ON_PURPOSE = {"gateway.wiring.wire": "one list of constructors, in their order"}


def test_no_function_is_too_long() -> None:
    long = {
        f"{name_of(path)}.{node.name}": node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > 80
        and f"{name_of(path)}.{node.name}" not in LONG_ON_PURPOSE
    }
    assert not long
