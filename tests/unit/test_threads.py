"""Rotation has threads of its own: whatever else waits for threads, certificates are renewed."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import gc
import subprocess
import sys
import threading
import traceback
import weakref
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from sds import threads
from sds.clock import SystemClock
from sds.errors import AuthorityUnavailableError
from sds.exchange.item import IssuedChain
from sds.identity import KeyType
from sds.secrets.issuance_queue import Credentials, IssuanceQueue, NoCredentials
from sds.secrets.schedule import Urgency
from sds.threads import Threads
from tests.support.fake_authority import FakeAuthority
from tests.support.no_threads import give_no_more_threads
from tests.support.source import modules
from tests.unit.test_rotation import identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from sds.authority.port import Issuance
    from sds.exchange.item import CertificateItem


def calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == name:
            yield node


@pytest.mark.parametrize(
    "source",
    [
        "async def f(): await asyncio.to_thread(g)",
        "async def f(): await loop.run_in_executor(None, g)",
        "def f(): loop.set_default_executor(e)",
    ],
)
def test_the_default_executor_is_found(source: str) -> None:
    assert list(of_the_default_executor(ast.parse(source)))


def of_the_default_executor(tree: ast.AST) -> Iterator[ast.Call]:
    yield from calls(tree, "to_thread")
    yield from calls(tree, "set_default_executor")
    for call in calls(tree, "run_in_executor"):
        if isinstance(call.args[0], ast.Constant):
            yield call


JOINED_AT_THE_END = {
    "sds/attestation/snp/simulated.py": "joined at once: it makes keys",
    "sds/commands/demo.py": "joined at once: it loads modules",
}
"""Where threads that the interpreter joins before it ends do only work that ends."""


@pytest.mark.no_cover
def test_no_thread_that_the_interpreter_waits_for_may_hang() -> None:
    found = {
        path
        for path, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ThreadPoolExecutor"
    }
    assert found == JOINED_AT_THE_END.keys()


HANGS = """
import asyncio, os
from sds import threads

threads.END_SECONDS = 0.2
nobody_writes, _ = os.pipe()

async def main():
    for _ in range(2):
        asyncio.ensure_future(threads.COLLATERAL.run(os.read, nobody_writes, 1))
    await asyncio.sleep(0.1)

asyncio.run(main())
print("ended", flush=True)
"""


def test_a_file_system_that_hangs_keeps_no_process_from_ending() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")


async def test_work_waits_for_a_thread_and_threads_for_work() -> None:
    pool, release = Threads("test", 2), threading.Event()
    held = [asyncio.ensure_future(pool.run(release.wait)) for _ in range(2)]
    waiting = asyncio.ensure_future(pool.run(threading.current_thread))
    given_up = asyncio.ensure_future(pool.run(release.clear))
    await asyncio.sleep(0.05)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    assert not waiting.done()
    release.set()
    assert await asyncio.gather(*held) == [True, True]
    first = await waiting
    assert release.is_set()  # what was given up before a thread began is not done
    assert await pool.run(threading.current_thread) in {first, *threading.enumerate()}
    names = {thread.name for thread in threading.enumerate() if thread.name.startswith("test_")}
    assert names == {"test_1", "test_2"}
    with pytest.raises(ZeroDivisionError):
        await pool.run(divmod, 1, 0)


async def test_work_that_was_given_up_does_not_wait_behind_work_that_hangs() -> None:
    """Before, each attempt behind a file system that hangs stayed in memory for as long."""

    class Argument:
        pass

    one, goes = Threads("one", 1), threading.Event()
    hangs = asyncio.create_task(one.run(goes.wait, 30))
    try:
        argument = Argument()
        reference = weakref.ref(argument)
        given_up = asyncio.create_task(one.run(id, argument))
        other = asyncio.create_task(one.run(int, "7"))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        del argument, given_up
        gc.collect()
        assert reference() is None
    finally:
        goes.set()
        await hangs
    assert await other == 7


@pytest.mark.no_cover
def test_nothing_uses_the_default_executor() -> None:
    found = [
        f"{path}:{call.lineno}"
        for path, tree in modules().items()
        for call in of_the_default_executor(tree)
    ]
    assert not found


async def test_a_renewal_needs_no_thread_that_callers_can_fill() -> None:
    release = threading.Event()
    others = [
        one
        for one in vars(threads).values()
        if isinstance(one, Threads) and one not in (threads.ROTATION, threads.SLOW_KEYS)
    ]
    assert threads.SLOW_KEYS_OF_NEWCOMERS in others
    waiting = [asyncio.ensure_future(one.run(release.wait)) for one in others for _ in range(20)]
    waiting += [asyncio.ensure_future(asyncio.to_thread(release.wait)) for _ in range(64)]
    try:
        await asyncio.sleep(0)
        clock = SystemClock()
        queue = IssuanceQueue(
            FakeAuthority(clock), clock, on_roots=lambda *_: None, attempt_seconds=30
        )
        running = asyncio.create_task(queue.run())
        for key_type in (KeyType.EC_P256, KeyType.RSA_2048):
            answer = await queue.ask(identity(key_type=key_type), Urgency.EARLY, window=0)
            assert isinstance(answer, Credentials)
        running.cancel()
        assert not any(one.done() for one in waiting)  # nobody made room
    finally:
        release.set()
        await asyncio.gather(*waiting)


async def test_where_the_system_gives_no_more_threads_those_that_are_there_do_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool, release = Threads("test", 3), threading.Event()
    held = asyncio.ensure_future(pool.run(release.wait))
    await asyncio.sleep(0.01)

    give_no_more_threads(monkeypatch)
    waiting = asyncio.ensure_future(pool.run(divmod, 7, 2))
    await asyncio.sleep(0)
    release.set()
    assert await waiting == (3, 1)
    assert await held
    with pytest.raises(RuntimeError, match="new thread"):
        await Threads("none", 3).run(divmod, 7, 2)


class Argument:
    """What a piece of work gets, such as a private key."""


@pytest.mark.parametrize("run", [threads.ROTATION.run, partial(threads.alone, "one")])
async def test_work_that_fails_keeps_its_arguments_no_longer(run: Callable[..., Any]) -> None:
    """Without waiting for the garbage collector, which may not run for hours."""

    def fail(_given: Argument) -> None:
        raise ValueError("no")

    given = Argument()
    left = weakref.ref(given)
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(ValueError):
            await run(fail, given)
        del given
        while left() is not None:  # the thread lets go a moment after it passed the error on
            await asyncio.sleep(0.001)
    finally:
        gc.enable()


class Late(FakeAuthority):
    """An authority whose client fails because of another error."""

    async def issue(self, items: Sequence[CertificateItem]) -> Issuance:
        error = TimeoutError()
        raise AuthorityUnavailableError(f"no answer about {len(items)}") from error


class Babbler(FakeAuthority):
    """An authority whose certificates no parser reads, so that the error has a cause."""

    async def issue(self, items: Sequence[CertificateItem]) -> Issuance:
        issuance = await super().issue(items)
        chain = IssuedChain(chain=(b"\x30\x03\x02\x01\x00",))
        return replace(issuance, outcomes=(chain,) * len(items))


class Impostor(FakeAuthority):
    """An authority that signs under a root that it does not name."""

    async def issue(self, items: Sequence[CertificateItem]) -> Issuance:
        self.bundle = [self.new_root("other").der]
        return await super().issue(items)


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [(Late, 30.0), (FakeAuthority, 0.01), (Impostor, 30.0), (Babbler, 30.0)],
)
async def test_the_error_of_a_request_keeps_no_key(
    kind: type[FakeAuthority], seconds: float
) -> None:
    """Rotation keeps the error until the next attempt, for people who ask why."""
    clock = SystemClock()
    authority = kind(clock)
    authority.silent = None if seconds > 1 else asyncio.Event()
    queue = IssuanceQueue(authority, clock, on_roots=lambda *_: None, attempt_seconds=seconds)
    running = asyncio.create_task(queue.run())
    answer = await queue.ask(identity(), Urgency.WAITING, window=0)
    assert isinstance(answer, NoCredentials)
    assert not [one for one in reached(answer.error) if isinstance(one, EllipticCurvePrivateKey)]
    running.cancel()


def reached(error: BaseException) -> list[object]:
    """Everything that an error keeps alive by its causes and by the locals of its frames."""
    found: list[object] = []
    frames: dict[FrameType, None] = {}
    chain: BaseException | None = error
    while chain is not None:
        for frame, _ in traceback.walk_tb(chain.__traceback__):
            frames |= {outer: None for outer, _ in traceback.walk_stack(frame)}
        chain = chain.__context__ or chain.__cause__
    for frame in frames:
        for value in frame.f_locals.values():
            found += [value, *(value if isinstance(value, list | tuple) else ())]
    return found
