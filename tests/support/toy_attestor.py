"""An attestor of workloads that this program does not know: what a newcomer would write.

It tells apart callers whose pid is even or odd (``toy:parity``), and says what its settings say
(``toy:word``).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from sds.workload.entitlement import Selector
from sds.workload.facts import Facts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sds.workload.attestors import NodeContext
    from sds.workload.peer import Peer

NAME: Final = "toy"


class ToyAttestor:
    name = NAME
    costly: frozenset[str] = frozenset()

    def __init__(self, word: str) -> None:
        self._word = word

    async def attest(self, peer: Peer, needed: frozenset[str]) -> Facts:
        del needed
        parity = "odd" if peer.pid % 2 else "even"
        peer.check()
        found = {Selector("toy:parity", parity), Selector("toy:word", self._word)}
        return Facts(selectors=frozenset(found))

    def notices(self) -> tuple[str, ...]:
        return ("the toy attestor is in use",)

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        del listener
        return lambda: None


class ToyAttestorKind:
    @contextlib.asynccontextmanager
    async def open(self, node: NodeContext) -> AsyncIterator[ToyAttestor]:
        yield ToyAttestor(node.settings.others[NAME]["word"])


KIND: Final = ToyAttestorKind()
