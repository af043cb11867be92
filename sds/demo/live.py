"""Shows the demo on a terminal: a live table, with the last events below it.

Owns the screen while it is entered. Invariants: the view fits the terminal, from 80 columns by 24
lines on; it always says that the machine is simulated and how to end the demo; the newest event
comes first, each event takes one line, and equal events are counted. Import it only on a terminal,
because the import of rich is slow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sds.demo.events import Event, Ready, Summary
from sds.demo.report import in_words

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sds.clock import Instant
    from sds.demo.ledger import RotationLedger, WorkloadRotations

_KEPT_EVENTS: Final = 100
_OTHER_LINES: Final = 12
"""How many lines of the view are not events: header, table, requests, border, and cursor."""
_BORDER: Final = 4
_SERIAL_DIGITS: Final = 8
_SOON_SECONDS: Final = 2.0


class LiveReporter:
    """Draws the view; without a ``console`` it draws on the terminal."""

    def __init__(self, console: Console | None = None, *, has_key: bool = False) -> None:
        """Prepare; with ``has_key`` the view names the key ``w`` for the client's right."""
        self._has_key = has_key
        self._console = console if console is not None else Console()
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._ready = False
        self._summary: Summary | None = None
        self._events: dict[str, int] = {}
        """How often each event happened; the newest is last."""

    def __enter__(self) -> Self:
        """Begin to draw on the screen."""
        self._live.start()
        self._live.update(Text("Starting an authority, an agent and two Envoys …"), refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing; the summary stays on the screen."""
        self._live.stop()
        if self._summary is not None and self._ready:
            self._console.print(in_words(self._summary), highlight=False)

    def tell(self, event: Event) -> None:
        """Show one event; the commands to try stay above the table, uncut, to be copied."""
        match event:
            case Ready():
                self._ready = True
                self._console.print(in_words(event), soft_wrap=True, highlight=False, markup=False)
            case Summary():
                self._summary = event
            case _:
                words = in_words(event)
                self._events[words] = self._events.pop(words, 0) + 1
                if len(self._events) > _KEPT_EVENTS:
                    del self._events[next(iter(self._events))]

    def refresh(self, ledger: RotationLedger, now: Instant) -> None:
        """Draw the view again."""
        if self._ready:
            self._live.update(self.screen(ledger, now), refresh=True)

    def screen(self, ledger: RotationLedger, now: Instant) -> RenderableType:
        """Return the view at the time ``now``."""
        failures = Text(f"{ledger.failed} failed", style="bold red" if ledger.failed else "green")
        return Group(
            Text.assemble(
                ("SIMULATED attestation: this chip exists only here", "bold yellow"),
                "   Ctrl-C ends the demo",
            ),
            _table(list(ledger.workloads.values()), now),
            Text.assemble(
                f"{ledger.requests} requests over fresh mTLS connections, ",
                failures,
                "; w: the client's right" if self._has_key else "",
            ),
            self._last_events(),
        )

    def _last_events(self) -> Panel:
        """Return as many events as fit, the newest first, each in one line."""
        fitting = max(1, self._console.height - _OTHER_LINES)
        newest = list(self._events.items())[-fitting:][::-1]
        width = self._console.width - _BORDER
        lines = [
            Text(_fitted(f"{count} times: {words}" if count > 1 else words, width), no_wrap=True)
            for words, count in newest
        ]
        return Panel(Group(*lines) if lines else Text("No rotation yet."), title="events")


def _fitted(words: str, width: int) -> str:
    """Shorten a line in its middle, because a failure's cause is at its end."""
    words = " ".join(words.split())
    if len(words) <= width:
        return words
    head = width * 2 // 5
    return f"{words[:head]}…{words[len(words) - (width - head - 1) :]}"


def _table(states: list[WorkloadRotations], now: Instant) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        expand=False,
        caption="certificates as their peers see them in use",
    )
    for heading in ("workload", "serial"):
        table.add_column(heading, no_wrap=True)
    for heading in ("expires", "rotations", "slowest"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
    table.add_column("SPIFFE ID", no_wrap=True, overflow="ellipsis")
    for state in states:
        left = (
            (state.certificate.not_after - now.wall).total_seconds() if state.certificate else 0.0
        )
        table.add_row(
            state.name,
            state.certificate.serial[:_SERIAL_DIGITS] if state.certificate else "-",
            Text(f"{left:.1f} s", style="yellow" if left < _SOON_SECONDS else ""),
            str(state.rotations),
            "-" if state.slowest_ms is None else f"{state.slowest_ms:.0f} ms",
            state.spiffe_id,
        )
    return table
