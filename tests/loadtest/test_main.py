"""The command line."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import loadtest
from loadtest.__main__ import app

RUN = CliRunner()


def test_help_names_the_options() -> None:
    text = RUN.invoke(app, ["simulate", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    for option in ("--callback-url", "--app-secret", "--profile", "--answers", "--allow-host"):
        assert option in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--host", "0.0.0.0"],
        ["--callback-url", "https://example.com/hook"],
        ["--callback-url", "nonsense"],
        ["--user", "Ana"],
        ["--user", "5511900000001:Ana:loud"],
        ["--phone-number", "+55"],
        ["--country", "Brazil"],
        ["--app-secret", ""],
        ["--profile", "wishes"],
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(arguments: list[str]) -> None:
    result = RUN.invoke(app, ["simulate", "--port", "0", *arguments])
    assert result.exit_code == 2


async def test_it_runs_until_told_to_stop() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "loadtest",
        "simulate",
        "--port",
        "0",
        "--user",
        "5511900000009:Dora:700",
        "--answers",
        "auto_accept",
        cwd=Path(loadtest.__file__).parent.parent,
        env=dict(os.environ),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(15):
        assert b"simulated Meta: http://127.0.0.1:" in await process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        await process.stdout.read()
