"""One identity that is held: by whom, and whether anybody wants it to be renewed.

Owns :class:`HeldIdentity`. Three kinds of holders share one certificate: those that want it (a
workload's own socket, callers of the node-wide socket), those for which it rests (their callers
have left and may come back), and those that only expect a caller. Invariants: each holder counts
for itself, so nobody's end or rest stops a renewal that another wants; without anybody who wants
it, a certificate is asked for once, for a caller that is expected, and is not renewed; a change
that may cure a refusal counts too if it comes before the refusal.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from sds.secrets.schedule import State


@dataclass(slots=True, kw_only=True)
class HeldIdentity:
    """The holders of an identity, and the state of its rotation.

    Attributes:
        state: its certificate, and what failed.
        holders: all of them. For those that are in none of the next two, it rests.
        wanted: how many want it.
        expected: how many only expect a caller.
        rotations: how many certificates were taken into service.
        task: its own.
        woken: set when something changed that its task waits for.
        cure: what such a change does to the state, if it came after the last question.
    """

    state: State
    holders: int = 0
    wanted: int = 0
    expected: int = 0
    rotations: int = 0
    task: asyncio.Task[None] | None = None
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    cure: Callable[[State], State] | None = None

    def changed(self, cure: Callable[[State], State]) -> None:
        """Note a change that may cure a failure, or one that the authority is about to answer.

        Args:
            cure: what the change does to the state.
        """
        self.state = cure(self.state)
        self.cure = cure
        self.woken.set()

    @property
    def lacks(self) -> bool:
        """Whether somebody wants it, and there is no certificate."""
        return self.wanted > 0 and self.state.lease is None

    @property
    def idle(self) -> bool:
        """Whether nobody wants it, and nobody expects a first certificate."""
        return not self.wanted and (self.rotations > 0 or not self.expected)
