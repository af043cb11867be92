"""The tutorial, gone through from a fresh clone with the commands taken from its text.

Nothing is added but the terminals: the second block runs in one of its own, as the text says; and
other ports are chosen, as the text says too, because another run may use these. The clone borrows
the set-up of this checkout, which `make setup` made: CI does that in a fresh clone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import need
from tests.support.readme import all_blocks, on_free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.e2e
TUTORIAL = need.ROOT / "docs" / "tutorial.md"


@pytest.fixture
def clone() -> Iterator[Path]:
    """A fresh clone in a folder with a short name (Unix sockets have short paths)."""
    top = Path(tempfile.mkdtemp(prefix="tut", dir="/tmp"))
    folder = top / "attested-sds"
    subprocess.run(["git", "clone", "--quiet", need.ROOT, folder], check=True)
    try:
        yield folder
    finally:
        shutil.rmtree(top, ignore_errors=True)


def borrow(folder: Path) -> None:
    """Give the clone this checkout's set-up: programs, generated code, Envoys."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    command = folder / ".venv" / "bin" / "sds"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} -P -m sds "$@"\n')
    command.chmod(0o755)
    shutil.copytree(need.ROOT / "sds" / "_proto", folder / "sds" / "_proto")
    (folder / ".envoy").symlink_to(need.ROOT / ".envoy")


@contextlib.asynccontextmanager
async def terminal(command: str, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A terminal of its own; ended by Ctrl-C."""
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        f"exec {command}",
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(2)
        async with asyncio.timeout(30):
            await process.wait()


async def until_said(process: asyncio.subprocess.Process, text: str) -> str:
    assert process.stdout is not None
    heard = ""
    async with asyncio.timeout(90):
        while text not in heard:
            line = (await process.stdout.readline()).decode()
            assert line, f"it ended before it said {text!r}:\n{heard}"
            heard += line
    return heard


@pytest.mark.timeout(420)
async def test_somebody_new_goes_through_the_tutorial(clone: Path) -> None:
    need.envoy("1.40.0")
    need.tool("curl")
    setup, first_terminal, *second_terminal = on_free_ports(all_blocks(TUTORIAL))
    assert setup == "make setup\n"
    borrow(clone)
    async with terminal(first_terminal.strip(), clone) as dev:
        said = await until_said(dev, "An authority and an agent are up")
        assert "SIMULATED" in said + await until_said(dev, "Ctrl-C ends it")
        # `set -m`: jobs, as in a person's shell; each block says when it is done.
        script = "set -em\n" + "\n".join(
            f"{block}\necho '== {index}'" for index, block in enumerate(second_terminal)
        )
        shell = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            script,
            cwd=clone,
            env=os.environ | {"TERM": "dumb"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(180):
            output, errors = (stream.decode() for stream in await shell.communicate())
        assert shell.returncode == 0, f"{output}\n{errors}"
        assert "PRIVATE KEY" not in "".join(
            path.read_text(errors="replace")
            for path in (clone / ".run").rglob("*")
            if path.is_file()
        )
    parts = re.split(r"^== \d+$", output, flags=re.MULTILINE)
    _bootstraps, _envoys, request, anonymous, rotation, look, status, _end = parts[:8]
    assert "spiffe://" in request
    assert "no answer for curl" in anonymous
    assert re.search(r"ssl\.fail_verify_no_cert: [1-9]", anonymous), anonymous
    serials = set(re.findall(r'"serial_number":\s*"([^"]+)"', rotation))
    assert len(serials) >= 2, rotation
    # The client's too: its connection ends before the certificate that it began with.
    assert len(set(re.findall(r'"serial": "(\w+)"', rotation))) >= 2, rotation
    assert "redacted" in look.lower()
    assert "server" in status
    assert "client" in status
