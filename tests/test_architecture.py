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
    "gateway": {"policy", "media.engine", "media.errors", "media.pool", "media.sdp"},
    "loadtest": set(),
}
#: What the signalling process must never load: it runs no ICE, DTLS, SRTP or codec.
HEAVY = {"aiortc", "aioice", "av", "pylibsrtp", "OpenSSL"}
#: A pure module has values in and values out.
IMPURE = {"asyncio", "time", "random", "logging", "structlog", "socket", "os", "secrets", "subprocess", "threading"}
#: Pure modules of the gateway, besides all of `callflow`.
PURE_MODULES = (
    "common/ids",
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
PURE = (
    *sorted((ROOT / "policy").glob("*.py")),
    *sorted((ROOT / "gateway" / "callflow").glob("*.py")),
    *(ROOT / "gateway" / f"{name}.py" for name in PURE_MODULES),
    *(ROOT / "media" / f"{name}.py" for name in ("sdp", "negotiation", "model", "stats", "errors")),
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


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_in_one_direction(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for module in imports(path):
        other = module.split(".")[0]
        if other in OURS - {package}:
            assert other in ALLOWED[package] or module in ALLOWED[package], f"{name_of(path)} imports {module}"


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
