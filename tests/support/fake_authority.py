"""An authority in the test's own process: real certificates, answers and failures by choice."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from cryptography.x509 import DNSName, UniformResourceIdentifier

from sds.authority.port import Issuance
from sds.errors import AuthorityRefusedError
from sds.exchange.item import IssuedChain
from sds.pki import csr_public_key
from tests.support.certificates import Signer, Wish, ca_wish, key_usage, self_signed

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from sds.clock import Clock
    from sds.errors import SdsError
    from sds.exchange.item import CertificateItem

_USAGE = key_usage("digital_signature")


class FakeAuthority:
    """Signs what it is asked for with ``root``, backdated as real ones do."""

    def __init__(self, clock: Clock, *, backdated: float = 120.0) -> None:
        self.clock = clock
        self.backdated = timedelta(seconds=backdated)
        self.root = self.new_root("first")
        self.bundle: list[bytes] = [self.root.der]
        self.requests: list[tuple[float, tuple[CertificateItem, ...]]] = []
        self.failure: SdsError | None = None
        self.refused: dict[str, str] = {}
        self.silent: asyncio.Event | None = None
        self.lifetime: timedelta | None = None

    def new_root(self, name: str) -> Signer:
        now = self.clock.now().wall
        wish = ca_wish(name)
        return self_signed(
            Wish(
                subject=wish.subject,
                constraints=wish.constraints,
                usage=wish.usage,
                extended=(),
                not_before=now - timedelta(days=1),
                not_after=now + timedelta(days=365),
            )
        )

    def restart(self, name: str) -> Signer:
        """A self-signed authority that lost its key: it names its new root only."""
        self.root = self.new_root(name)
        self.bundle = [self.root.der]
        return self.root

    async def issue(self, items: Sequence[CertificateItem]) -> Issuance:
        self.requests.append((self.clock.now().monotonic, tuple(items)))
        if self.silent is not None:
            await self.silent.wait()
        if self.failure is not None:
            raise self.failure
        return Issuance(
            outcomes=tuple(self._outcome(item) for item in items), roots=tuple(self.bundle)
        )

    def _outcome(self, item: CertificateItem) -> IssuedChain | AuthorityRefusedError:
        name = str(item.identity.spiffe_id)
        if reason := self.refused.get(name):
            return AuthorityRefusedError(f"{name} is refused", wire_reason=reason)
        now = self.clock.now().wall
        leaf = self.root.sign(
            Wish(
                not_before=now - self.backdated,
                not_after=now + (self.lifetime or item.identity.lifetime),
                usage=_USAGE,
                names=(
                    UniformResourceIdentifier(name),
                    *(DNSName(dns_name) for dns_name in item.identity.dns_names),
                ),
            ),
            csr_public_key(item.csr),
        )
        return IssuedChain(chain=(leaf,))


class FakeAuthorityWithRoots(FakeAuthority):
    """One that can be asked for its roots alone."""

    def __init__(self, clock: Clock, *, backdated: float = 120.0) -> None:
        super().__init__(clock, backdated=backdated)
        self.polls = 0

    async def roots(self) -> tuple[bytes, ...]:
        self.polls += 1
        if self.failure is not None:
            raise self.failure
        return tuple(self.bundle)
