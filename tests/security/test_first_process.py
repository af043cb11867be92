"""Signals to the first process of a container, which the kernel drops unless it has a handler."""

from __future__ import annotations

import sys

import pytest

from tests.support import need
from tests.support.process import output

AMID_THE_START = """
import os, signal, sys
from sds import cli, entry

def start(**_):
    os.kill(os.getpid(), signal.SIGTERM)
    print("it goes on")

cli.main = start
sys.argv = ["sds", "{command}"]
entry.main()
"""
WHILE_IT_DRAINS = """
import asyncio, os, signal
from sds.ca.run import _ended_by_signals

async def main():
    stop = asyncio.Event()
    with _ended_by_signals(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        print("it drains", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        print("it goes on")

asyncio.run(main())
"""


async def as_the_first(program: str) -> tuple[int, str, str]:
    unshare = [need.tool("unshare"), "--pid", "--fork", "--mount-proc", "--kill-child"]
    command = [*unshare, sys.executable, "-c", program]
    return await output(command, env={"PYTHONPATH": str(need.ROOT)})


@pytest.mark.parametrize("command", ["ca", "admission", "get"])
async def test_a_signal_amid_the_start_ends_it(command: str) -> None:
    assert await as_the_first(AMID_THE_START.format(command=command)) == (143, "", "")


async def test_a_second_signal_ends_the_drain_of_an_authority() -> None:
    assert await as_the_first(WHILE_IT_DRAINS) == (143, "it drains", "")
