"""A reload reads again; in the middle of an end it ends nothing."""

from __future__ import annotations

import asyncio
import os
import signal

from sds.operations.hangup import on_hangup


async def test_a_reload_during_the_drain_ends_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as sds.entry does
    try:
        read: list[str] = []
        told = asyncio.Event()
        with on_hangup(lambda: read.append("policy"), told.set):
            os.kill(os.getpid(), signal.SIGHUP)
            await told.wait()
        assert read == ["policy"]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0)
        assert read == ["policy"]
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_blocks_at_the_same_time_hear_of_the_same_reload() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        read: list[str] = []
        told = [asyncio.Event(), asyncio.Event()]
        first, second = on_hangup(told[0].set), on_hangup(lambda: read.append("b"), told[1].set)
        first.__enter__()
        second.__enter__()
        os.kill(os.getpid(), signal.SIGHUP)
        for one in told:
            await one.wait()
        first.__exit__(None, None, None)
        told[1].clear()
        os.kill(os.getpid(), signal.SIGHUP)
        await told[1].wait()
        second.__exit__(None, None, None)
        assert read == ["b", "b"]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
