"""Runs ``sds demo`` and ``sds dev``: their command lines, and their end by a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import shutil
import signal
import sys
import tempfile
import termios
import tty
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import click

import sds
from sds.bootstrap.plan import Protocol
from sds.clock import SystemClock
from sds.commands.options import NamedPath
from sds.demo.dev import Dev, Programs, own_program, typed
from sds.demo.envoys import ReservedPort, find_envoy
from sds.demo.live import LiveReporter
from sds.demo.node import MIN_LIFETIME_SECONDS, simulated_node
from sds.demo.report import JsonReporter, PlainReporter, in_words
from sds.demo.run import Demo, DemoPlan
from sds.errors import ConfigurationError
from sds.faults import guarded

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping

    from sds.demo.report import Reporter

_Result = TypeVar("_Result")
_ROTATIONS_ON_A_PIPE: Final = 3
_LIFETIME: Final = 10
_DEV_LIFETIME: Final = 300
_CHECKOUT: Final = Path(sds.__file__).parents[1]


@click.command("demo")
@click.option(
    "--rotations",
    type=click.IntRange(min=1),
    help="End when each workload has rotated this often.  [default: run until Ctrl-C on a "
    f"terminal, {_ROTATIONS_ON_A_PIPE} on a pipe]",
)
@click.option(
    "--lifetime",
    type=click.IntRange(min=MIN_LIFETIME_SECONDS),
    default=_LIFETIME,
    show_default=True,
    metavar="SECONDS",
    help="Lifetime of the workloads' certificates.",
)
@click.option(
    "--output",
    type=click.Choice(["auto", "live", "plain", "json"]),
    default="auto",
    show_default=True,
    help="auto: a live view on a terminal, plain lines on a pipe.",
)
@click.option("--envoy", help="The Envoy binary to run.  [default: SDS_ENVOY, .envoy/, the PATH]")
@click.option("--run-dir", type=NamedPath(path_type=Path), help="Keep sockets and logs here.")
@click.option(
    "--protocol",
    type=click.Choice([protocol.value for protocol in Protocol]),
    default=Protocol.SOTW.value,
    show_default=True,
    help="Variant of xDS that both Envoys use.",
)
@click.option(
    "--withdraw",
    is_flag=True,
    help="Use a signed policy: a new epoch takes the client's right away, its requests get 403, "
    "and the next epoch gives the right back. On a terminal, press w for this.",
)
def demo(
    *,
    rotations: int | None,
    lifetime: int,
    output: str,
    envoy: str | None,
    run_dir: Path | None,
    protocol: str,
    withdraw: bool,
) -> None:
    """Watch two real Envoys that talk mTLS with certificates that last seconds.

    Starts an authority, an agent and two Envoys, sends requests over fresh TLS connections all the
    time, and counts a rotation only when the other side saw the new certificate in use. Exit
    status 0: every workload rotated often enough and no request failed.
    """
    terminal = sys.stdout.isatty()
    if rotations is None and not terminal:
        rotations = _ROTATIONS_ON_A_PIPE
        click.echo(
            f"stdout is not a terminal: ends after {rotations} rotations of each workload "
            "(--rotations N changes that)",
            err=True,
        )
    binary = find_envoy(envoy, environment=os.environ, folders=[Path.cwd(), _CHECKOUT])
    reporter = _reporter(output, terminal=terminal, has_key=withdraw)
    by_key = withdraw and terminal and sys.stdin.isatty()
    with (
        ThreadPoolExecutor(1) as pool,
        _run_directory(run_dir, "demo") as folder,
        contextlib.closing(ReservedPort()) as port,
        # The RSA keys of the simulated chip are made without the interpreter's lock, so import
        # meanwhile.
        _bootstrap_is_imported(pool),
        simulated_node(
            folder,
            lifetime_seconds=lifetime,
            port=port.number,
            policy_clock=SystemClock() if withdraw else None,
        ) as node,
    ):
        plan = DemoPlan(
            node=node,
            envoy=binary,
            folder=folder / "etc",
            rotations=rotations,
            protocol=Protocol(protocol),
            cycles=1 if withdraw and not by_key else 0,
        )

        async def run() -> bool:
            running = Demo(plan, reporter=reporter, clock=SystemClock())
            keys = _keys({"w": running.toggle}) if by_key else contextlib.nullcontext()
            with keys, _ended_by_signals(running.stop, ready=lambda: running.is_ready), reporter:
                try:
                    return await running.run()
                finally:
                    reporter.tell(running.summary())

        passed = _to_its_end(run())
    click.get_current_context().exit(0 if passed else 1)


@click.command("dev")
@click.option(
    "--run-dir",
    type=NamedPath(path_type=Path),
    help="Where the sockets are.  [default: a new one under /tmp]",
)
@click.option(
    "--lifetime",
    type=click.IntRange(min=MIN_LIFETIME_SECONDS),
    default=_DEV_LIFETIME,
    show_default=True,
    metavar="SECONDS",
    help="Lifetime of the workloads' certificates.",
)
def dev(*, run_dir: Path | None, lifetime: int) -> None:
    """An authority and an agent without configuration, for an Envoy of your own.

    Serves two workloads, `server` and `client`, until Ctrl-C. Prints the commands to try next.
    """
    with (
        _run_directory(run_dir, "dev") as folder,
        contextlib.closing(ReservedPort()) as port,
        simulated_node(folder, lifetime_seconds=lifetime, port=port.number) as node,
    ):

        async def run() -> None:
            running = Dev(
                node,
                programs=_programs(),
                tell=click.echo,
                event=lambda event: click.echo(in_words(event), err=True),
                clock=SystemClock(),
            )
            with _ended_by_signals(running.stop, ready=lambda: running.is_ready):
                await running.run()

        _to_its_end(run())


def _programs() -> Programs:
    """Return the commands by which the reader starts ``sds`` and Envoy."""
    cwd = Path.cwd()
    try:
        binary = find_envoy(None, environment=os.environ, folders=[cwd, _CHECKOUT])
        envoy = typed(binary, cwd=cwd)
    except ConfigurationError:
        envoy = "envoy"  # `sds dev` needs none: the user brings one
    own = own_program(sys.argv[0], executable=sys.executable, cwd=cwd)
    return Programs(sds=own, envoy=envoy)


def _reporter(output: str, *, terminal: bool, has_key: bool) -> Reporter:
    if output == "live" or (output == "auto" and terminal):
        if not terminal:
            raise ConfigurationError(
                "--output live needs a terminal", advice="use --output plain or json"
            )
        return LiveReporter(has_key=has_key)
    return JsonReporter() if output == "json" else PlainReporter()


@contextlib.contextmanager
def _run_directory(chosen: Path | None, name: str) -> Iterator[Path]:
    """Make the run directory; remove a temporary one at the end, unless something failed."""
    if chosen is not None:
        yield chosen.absolute()
        return
    try:
        made = Path(tempfile.mkdtemp(prefix=f"sds-{name}-"))
    except OSError as error:
        raise ConfigurationError(
            f"no directory for sockets and logs can be made: {error.strerror}",
            advice="name one with --run-dir",
        ) from error
    try:
        yield made
    except BaseException:
        click.echo(f"sds: logs and configuration are kept in {made}", err=True)
        raise
    shutil.rmtree(made)


@contextlib.contextmanager
def _bootstrap_is_imported(pool: ThreadPoolExecutor) -> Iterator[None]:
    """Import what makes bootstraps while the block's other managers work."""
    importing = pool.submit(importlib.import_module, "sds.bootstrap.build")
    try:
        yield
    finally:
        importing.cancel()


def _to_its_end(running: Coroutine[None, None, _Result]) -> _Result:
    """Run to the end; a signal before the run is ready ends it silently.

    Raises:
        OSError: the output cannot be written, whichever task found that.
    """
    try:
        return asyncio.run(running)
    except asyncio.CancelledError:
        raise click.Abort from None
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        if group.split(OSError)[1] is None:
            raise first from None  # what runs the commands says it in words
        raise


@contextlib.contextmanager
def _keys(actions: Mapping[str, Callable[[], None]]) -> Iterator[None]:
    """Run the action of each key on the terminal while the block runs; no Enter is needed."""
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed() -> None:
        for key in os.read(descriptor, 64).decode("ascii", errors="ignore").lower():
            if key in actions:
                actions[key]()

    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, guarded("key", pressed))
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _ended_by_signals(stop: Callable[[], None], *, ready: Callable[[], bool]) -> Iterator[None]:
    """End the run on SIGINT and SIGTERM: in order, or at once before it is ready."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    def end() -> None:
        if ready() or task is None:
            stop()
        else:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
