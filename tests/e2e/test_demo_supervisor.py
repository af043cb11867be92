"""The demo's supervisor with real child processes."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from sds.clock import SystemClock
from sds.demo.events import Exited, Started
from sds.demo.supervisor import Log, Part, Supervisor
from sds.errors import SdsError
from tests.support.process import PATIENCE_SECONDS, running

pytestmark = pytest.mark.e2e

SECRET_SCRIPT = """
import os, sys
with open(int(sys.argv[1]), "rb") as secret:
    secret.seek(0)
    print(secret.read(), flush=True)
# Its standard input is closed: it waits on a pipe of its own.
os.read(os.pipe()[0], 1)
"""


class Impatient(SystemClock):
    """Waits between restarts are asked for, but not waited for."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await super().sleep(0)


class Watch:
    """What a supervisor told."""

    def __init__(self, folder: Path, *parts: Part) -> None:
        self.clock = Impatient()
        self.events: list[Exited | Started] = []
        self.lines: list[tuple[str, str]] = []
        self._news = asyncio.Event()
        self.supervisor = Supervisor(
            parts, logs=folder, clock=self.clock, tell=self._told, line=self._said
        )

    def _told(self, event: Exited | Started) -> None:
        self.events.append(event)
        self._news.set()

    def _said(self, name: str, text: str) -> None:
        self.lines.append((name, text))
        self._news.set()

    async def until_lines(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self.lines) < count:
                self._news.clear()
                await self._news.wait()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.supervisor.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_a_dead_part_starts_again_after_two_seconds_with_its_secret(tmp_path: Path) -> None:
    memory = os.memfd_create("secret")
    os.write(memory, b"the chip")
    command = [sys.executable, "-c", SECRET_SCRIPT, str(memory)]
    part = Part(name="part", command=command, descriptors=(memory,))
    other = Part(name="other", command=["sleep", "600"])
    watch = Watch(tmp_path, part, other)
    async with watch.running():
        await watch.until_lines(1)
        await watch.supervisor.started()
        watch.supervisor.settle()
        first = watch.supervisor.pids["part"]
        os.kill(first, 9)
        await watch.until_lines(2)
        second = watch.supervisor.pids["part"]
        assert watch.lines == [("part", "b'the chip'")] * 2
        assert watch.events == [
            Exited(process="part", pid=first, status=-9),
            Started(process="part", pid=second),
        ]
        assert watch.clock.slept == [2.0]
        assert b"the chip" not in Path(f"/proc/{second}/environ").read_bytes()
        assert b"the chip" not in Path(f"/proc/{second}/cmdline").read_bytes()
        pids = dict(watch.supervisor.pids)
    os.close(memory)
    assert not any(alive(pid) for pid in pids.values())
    assert (tmp_path / "part.log").read_text() == "b'the chip'\n" * 2


async def test_a_part_that_cannot_start_ends_everything_with_its_words(tmp_path: Path) -> None:
    broken = Part(name="broken", command=[sys.executable, "-c", "raise SystemExit('no way')"])
    healthy = Part(name="healthy", command=["sleep", "600"])
    watch = Watch(tmp_path, broken, healthy)
    with pytest.raises(ExceptionGroup) as raised:
        await watch.supervisor.run()
    (error,) = raised.value.exceptions
    assert isinstance(error, SdsError)
    assert error.reason == "part_ended"
    assert "no way" in str(error)
    assert "status 1" in str(error)
    assert not alive(watch.supervisor.pids["healthy"])


async def test_what_is_no_program_ends_everything_with_words(tmp_path: Path) -> None:
    """An Envoy for another processor, say."""
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    program.chmod(0o700)
    watch = Watch(tmp_path, Part(name="broken", command=[str(program)]))
    with pytest.raises(ExceptionGroup) as raised:
        await watch.supervisor.run()
    (error,) = raised.value.exceptions
    assert isinstance(error, SdsError)
    assert "broken cannot be started" in str(error)


async def test_a_part_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sds.demo.supervisor.STOP_SECONDS", 0.2)
    script = "trap '' TERM; echo deaf; while :; do sleep 0.1; done"
    watch = Watch(tmp_path, Part(name="deaf", command=["bash", "-c", script]))
    async with watch.running():
        await watch.until_lines(1)
        pid = watch.supervisor.pids["deaf"]
    assert not alive(pid)


async def test_a_full_disk_for_a_log_ends_nothing(tmp_path: Path) -> None:
    script = "echo first; read _ < /dev/null; echo second; exec sleep 600"
    (tmp_path / "part.log").symlink_to("/dev/full")
    watch = Watch(tmp_path, Part(name="part", command=["bash", "-c", script]))
    async with watch.running():
        await watch.until_lines(2)
        watch.supervisor.settle()
        (tmp_path / "part.log").unlink()
        (tmp_path / "part.log").mkdir()  # a log that cannot be opened either
        os.kill(watch.supervisor.pids["part"], 9)
        await watch.until_lines(4)
    assert [text for _, text in watch.lines] == ["first", "second"] * 2
    assert watch.supervisor.last_lines("part") == "\n".join(["first", "second"] * 2)


async def test_a_log_is_written_on_when_there_is_space_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path / "part.log")
    log.write("first\n")
    with monkeypatch.context() as full:
        full.setattr("sds.demo.supervisor.os.write", Mock(side_effect=OSError(28, "full")))
        log.write("lost\n")
    log.write("last\n")
    log.close()
    assert (tmp_path / "part.log").read_text() == "first\nlast\n"


async def test_no_part_outlives_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    script = f"""
import asyncio
from pathlib import Path
from sds.clock import SystemClock
from sds.demo.supervisor import Log, Part, Supervisor
parts = [Part(name="child", command=["sleep", "600"])]
supervisor = Supervisor(
    parts, logs=Path({str(tmp_path)!r}), clock=SystemClock(), tell=print, line=print
)
async def main():
    task = asyncio.create_task(supervisor.run())
    await supervisor.started()
    print("child", supervisor.pids["child"], flush=True)
    await task
asyncio.run(main())
"""
    async with running([sys.executable, "-c", script], name="supervisor") as process:
        child = int((await process.line(r"^child (\d+)"))[1])
        assert alive(child)
        await process.kill()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while alive(child):
                await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("output", "said"),
    [("full", ["sds: stdout cannot be written: No space left on device"]), ("closed", [])],
)
async def test_dev_whose_output_cannot_be_written_ends_without_a_traceback(
    tmp_path: Path, output: str, said: list[str]
) -> None:
    if output == "full":
        stdout = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, stdout = os.pipe()
        os.close(reading)
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "sds", "dev", "--run-dir", str(tmp_path / "dev")],
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(stdout)
    async with asyncio.timeout(PATIENCE_SECONDS):
        _, errors = await process.communicate()
    assert errors.decode().splitlines() == said
    assert process.returncode == 1
