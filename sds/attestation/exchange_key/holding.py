"""The exchange key of this process: made once for each boot, measured, and kept without a file.

Owns the key and the order of its making. Invariants: the key is in the service manager's
descriptor store before its digest is in the register, so that no crash between the two loses it; a
key that the register does not show is never used; a register that something else extended is an
error, because no verifier would accept our evidence.

The key is a seed in a sealed memfd. A root container that mounts a directory of the node could read
a file, but a memfd has no name there. systemd keeps it while the service restarts
(``FileDescriptorStoreMax=``, ``FileDescriptorStorePreserve=yes``) and gives it to the next process.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sds import service_manager
from sds.attestation.evidence import ExchangeProof, answer_challenge
from sds.attestation.exchange_key.events import cap_event, key_event, replay, signed_text
from sds.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sds.attestation.evidence import Attester, Evidence, ReportData

NAME: Final = "exchange-key"
"""The name of the descriptor in the service manager's store."""
_SEED_BYTES: Final = 32
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Register(Protocol):
    """A runtime register.

    Attributes:
        algorithm: its hash, as hashlib names it.
    """

    @property
    def algorithm(self) -> str: ...

    def read(self) -> bytes:
        """Read the register's value now."""
        ...

    def extend(self, event: bytes) -> None:
        """Extend the register by one digest."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldKey:
    """A key that the register shows.

    Attributes:
        public_key: SubjectPublicKeyInfo, DER.
        events: the events that replay to the register's value.
    """

    key: Ed25519PrivateKey = field(repr=False)
    public_key: bytes
    events: tuple[bytes, ...]

    def proof(self, report_data: bytes) -> ExchangeProof:
        """Make the proof that travels with evidence that contains ``report_data``."""
        return ExchangeProof(
            public_key=self.public_key,
            events=self.events,
            signature=self.key.sign(signed_text(report_data)),
        )


class KeyedAttester:
    """An attester whose evidence the exchange key signs."""

    def __init__(self, inner: Attester, held: HeldKey) -> None:
        self._inner = inner
        self._held = held

    async def attest(self, data: ReportData) -> Evidence:
        evidence = await self._inner.attest(data)
        return dataclasses.replace(evidence, proof=self._held.proof(data))

    async def answer_challenge(self, challenge: bytes) -> None:
        """Let the inner attester answer.

        Raises:
            EvidenceError: as for :func:`sds.attestation.evidence.answer_challenge`.
        """
        await answer_challenge(self._inner, challenge)


def hold_key(register: Register, *, environment: Mapping[str, str], pid: int) -> HeldKey:
    """Return the key of this boot: the one that the service manager kept, or a new one.

    Args:
        register: the register in which it is measured.
        environment: names the service manager's socket and the descriptors that came from it.
        pid: our process ID.

    Raises:
        ConfigurationError: ``runtime_register``: the register cannot be used.
            ``exchange_key_lost``: the register is in use, and no key for it came with our start.
            ``exchange_key_store``: no service manager keeps the key.
    """
    value = register.read()
    descriptors = service_manager.kept(NAME, environment, pid=pid)
    key = _received(descriptors)
    if key is None:
        if value != replay((), algorithm=register.algorithm):
            raise _lost("the register is already in use, and no key came with this start")
        key = _new_key(environment)
    public_key = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    algorithm = register.algorithm
    events = (key_event(public_key, algorithm=algorithm), cap_event(algorithm=algorithm))
    # An earlier process may have ended between two steps.
    done = next(
        (
            count
            for count in range(len(events) + 1)
            if replay(events[:count], algorithm=algorithm) == value
        ),
        None,
    )
    if done is None:
        raise _lost("the register does not show the key that came with this start")
    for event in events[done:]:
        register.extend(event)
    if register.read() != replay(events, algorithm=algorithm):
        raise _lost("something else extends the register at the same time")
    return HeldKey(key=key, public_key=public_key, events=events)


def _new_key(environment: Mapping[str, str]) -> Ed25519PrivateKey:
    place = service_manager.address(environment)
    if place is None:
        raise _not_kept("no service manager started this process (NOTIFY_SOCKET is not set)")
    key = Ed25519PrivateKey.generate()
    descriptor = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(descriptor, key.private_bytes_raw())
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        service_manager.keep(place, NAME, descriptor)
    except OSError as error:
        raise _not_kept(
            f"the service manager does not keep it: {error.strerror or error}"
        ) from error
    finally:
        os.close(descriptor)
    return key


def _received(descriptors: tuple[int, ...]) -> Ed25519PrivateKey | None:
    """Return the key in the descriptor that came with our start; None if none came."""
    if not descriptors:
        return None
    seeds = []
    for descriptor in descriptors:
        try:
            sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) == _SEALS
            seeds.append(os.pread(descriptor, _SEED_BYTES + 1, 0) if sealed else b"")
        except OSError as error:
            raise _lost(f"the descriptor {NAME} cannot be read: {error.strerror}") from error
        finally:
            os.close(descriptor)
    if len(seeds) != 1 or len(seeds[0]) != _SEED_BYTES:
        raise _lost(f"{len(seeds)} descriptors {NAME} came with this start, not one with a key")
    return Ed25519PrivateKey.from_private_bytes(seeds[0])


def _lost(why: str) -> ConfigurationError:
    return ConfigurationError(
        f"attestation.exchange_key: {why}",
        advice="restart the machine, which empties the register; let this service start before "
        "containers, and let systemd keep its descriptors (FileDescriptorStoreMax=1, "
        "FileDescriptorStorePreserve=yes)",
        reason="exchange_key_lost",
    )


def _not_kept(why: str) -> ConfigurationError:
    return ConfigurationError(
        f"attestation.exchange_key: {why}",
        advice="run it as a systemd service with FileDescriptorStoreMax=1 and NotifyAccess=main; "
        "otherwise a restart loses the key until the machine restarts",
        reason="exchange_key_store",
    )
