"""Makes the authority's own evidence once for many callers that ask at the same time.

Owns the queue of Hello nonces that wait for evidence. Invariants: one report is collected at a
time; it covers every nonce that waited when it was begun, up to :data:`MAX_COVERED`; it is begun
once a turn of the event loop brings no further nonce, or after :data:`_GATHERED_TURNS` turns; a
report is never used for a nonce that it does not cover, nor kept for later. So ten thousand agents
that say Hello at once cost a few dozen reports, although a turn reads few of their Hellos.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from sds.errors import RefusedError, SdsError
from sds.exchange.challenge import MAX_COVERED, authority_report_data

if TYPE_CHECKING:
    from sds.attestation.evidence import Attester, Evidence
    from sds.exchange.challenge import AuthorityStatement

_GATHERED_TURNS: Final = 8
"""How many turns of the loop a crowd of Hellos may put a report off: some 30 ms at worst."""


class Statements(Protocol):
    """Gives the authority's statement about itself."""

    def __call__(self) -> AuthorityStatement:
        """Return the statement as of now.

        Raises:
            RefusedError: ``authority_not_ready``: it has nothing to sign with.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Evidence of the authority, the statement that it binds, and the nonces that it covers.

    ``evidence`` is None for an authority without attestation; only agents with verified TLS and no
    reference values accept that.
    """

    statement: AuthorityStatement
    evidence: Evidence | None
    covered: tuple[bytes, ...]


class Prover:
    """Collects evidence for all waiting nonces at once.

    Args:
        attester: collects our evidence; None if we have none.
        statements: gives the statement to bind.
    """

    def __init__(self, attester: Attester | None, statements: Statements) -> None:
        self._attester = attester
        self._statements = statements
        self._waiting: dict[asyncio.Future[Proof], bytes] = {}
        """The nonce of each waiting caller, the oldest first."""
        self._wake = asyncio.Event()
        self.reports = 0

    async def prove(self, nonce: bytes) -> Proof:
        """Return evidence that covers ``nonce``; :meth:`run` must be running.

        Raises:
            EvidenceError: our evidence cannot be collected.
            RefusedError: ``authority_not_ready``: there is nothing to prove yet.
        """
        if self._attester is None:
            return Proof(statement=self._statements(), evidence=None, covered=(nonce,))
        future: asyncio.Future[Proof] = asyncio.get_running_loop().create_future()
        self._waiting[future] = nonce
        self._wake.set()
        try:
            return await future
        finally:  # a caller that leaves while a device does not answer takes no memory
            self._waiting.pop(future, None)

    async def run(self) -> None:
        """Serve waiting callers until cancelled, and then tell them that this ended."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    await self._gather()
                    if self._waiting:  # else all have left meanwhile
                        await self._serve()
        finally:
            for future in self._waiting:
                if not future.done():
                    future.set_exception(
                        RefusedError("the authority is stopping", reason="authority_not_ready")
                    )
            self._waiting.clear()

    async def _gather(self) -> None:
        """Let more callers come, while each turn of the loop brings some."""
        before = 0
        for _ in range(_GATHERED_TURNS):
            if not before < len(self._waiting) < MAX_COVERED:
                return
            before = len(self._waiting)
            await asyncio.sleep(0)

    async def _serve(self) -> None:
        batch = dict(itertools.islice(self._waiting.items(), MAX_COVERED))
        for future in batch:
            del self._waiting[future]
        covered = tuple(batch.values())
        try:
            statement = self._statements()
            assert self._attester is not None
            evidence = await self._attester.attest(authority_report_data(statement, covered))
        except SdsError as error:
            for future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        except BaseException:
            self._waiting |= batch  # run() tells them that it ended
            raise
        self.reports += 1
        proof = Proof(statement=statement, evidence=evidence, covered=covered)
        for future in batch:
            if not future.done():
                future.set_result(proof)
