"""An authority for the test of the registry: it signs with a root of its own, and says its word."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509

from sds.authority.port import Issuance
from sds.errors import ConfigurationError
from sds.exchange.item import IssuedChain
from sds.pki import csr_public_key
from tests.support.certificates import Signer, Wish, ca_wish, self_signed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sds.clock import Clock
    from sds.exchange.item import CertificateItem

NAME: Final = "toy"


@dataclass(slots=True)
class ToyAuthority:
    """Signs what it is asked for."""

    word: str
    root: Signer = field(default_factory=lambda: self_signed(ca_wish("toy")))
    closed: bool = False

    async def issue(self, items: Sequence[CertificateItem]) -> Issuance:
        outcomes = []
        for item in items:
            names = [x509.UniformResourceIdentifier(str(item.identity.spiffe_id))]
            leaf = self.root.sign(Wish(names=tuple(names)), csr_public_key(item.csr))
            outcomes.append(IssuedChain(chain=(leaf,)))
        return Issuance(outcomes=tuple(outcomes), roots=(self.root.der,))

    async def aclose(self) -> None:
        self.closed = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Toy:
    elsewhere: timedelta = timedelta(hours=3)

    def client(self, section: Any, *, clock: Clock) -> ToyAuthority:
        del clock
        if "word" not in section.settings:
            raise ConfigurationError("authority.settings.word is missing")
        return ToyAuthority(section.settings["word"])

    def check(self, section: Any, problem: Callable[[str, str], None]) -> None:
        if "word" not in section.settings:
            problem("authority.settings.word", "it is missing")


KIND: Final = _Toy()
