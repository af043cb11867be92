"""An authority that an operator certifies, by a request and a chain in PEM files.

Owns those files. Invariants: none of them is read or written on the event loop; a chain counts only
if it fits the current key and is valid under the roots; a chain that does not is logged once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.serialization import Encoding

from sds import threads
from sds.ca.issuer import authority_name, authority_request, make_signer
from sds.errors import CertificateError, RefusedError, SdsError
from sds.files import read_file, replace_file
from sds.pki import (
    certificate_der,
    certificates_from_pem,
    complete_anchors,
    generate_private_key,
    load_certificate,
    read_root,
    verify_authority_chain,
)
from sds.pki.path import sorted_path
from sds.untrusted_input import words_of

if TYPE_CHECKING:
    from pathlib import Path

    from sds.ca.issuer import Signer
    from sds.clock import Clock
    from sds.identity import KeyType, TrustDomain
    from sds.pki import PrivateKey

_LOGGER = logging.getLogger(__name__)
_MAX_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class FromOperator:
    """An intermediate of an existing PKI or an offline root, certified through PEM files.

    Attributes:
        csr_file: the request, written anew for every key.
        chain_file: the operator's chain, the issuing certificate first.
        roots_file: the roots under which the chain must be valid. They become the trust bundle, and
            the file is followed.
    """

    trust_domain: TrustDomain
    key_type: KeyType
    csr_file: Path
    chain_file: Path
    roots_file: Path
    clock: Clock
    poll: timedelta = timedelta(seconds=1)

    async def next_signer(self) -> tuple[Signer, tuple[bytes, ...]]:
        """Write the CSR and wait for its chain; a chain that does not fit is logged and ignored.

        Raises:
            RefusedError: ``authority_not_ready``: the CSR cannot be written.
        """
        key = await threads.SIGNERS.run(generate_private_key, self.key_type)
        request = authority_request(key, self.trust_domain).public_bytes(Encoding.PEM)
        await threads.SIGNERS.run(self._write, request)
        _LOGGER.warning(
            "waiting for an operator: sign the request in %s and put the chain into %s",
            self.csr_file,
            self.chain_file,
            extra={"subject": authority_name(key.public_key()).rfc4514_string()},
        )
        said = ""
        while True:
            try:
                return await threads.SIGNERS.run(self._read, key)
            except (OSError, SdsError) as error:
                if not self._is_awaited(error) and words_of(error) != said:
                    said = words_of(error)
                    _LOGGER.warning(
                        "the operator's chain cannot be used: %s",
                        said,
                        extra={"chain_file": str(self.chain_file)},
                    )
            await self.clock.sleep(self.poll.total_seconds())

    @property
    def outlived(self) -> timedelta:
        """Return no time: the operator's file alone says which roots count."""
        return timedelta(0)

    async def roots(self) -> tuple[bytes, ...]:
        """Read the roots in the file.

        Raises:
            RefusedError: ``authority_not_ready``: the file cannot be read.
            CertificateError: a root cannot be used.
        """
        try:
            return await threads.SIGNERS.run(self._roots)
        except OSError as error:
            raise RefusedError(
                f"{self.roots_file} cannot be read: {error.strerror}",
                advice="put the roots of the bundle there",
                reason="authority_not_ready",
            ) from error

    def _is_awaited(self, error: Exception) -> bool:
        """Say whether an error means only that the operator has not answered yet."""
        missing = str(error.filename) if isinstance(error, FileNotFoundError) else ""
        return missing == str(self.chain_file)

    def _write(self, pem: bytes) -> None:
        try:
            replace_file(self.csr_file, pem, mode=0o644)
        except OSError as error:
            raise RefusedError(
                f"the request for the operator cannot be written to {self.csr_file}: "
                f"{words_of(error)}",
                advice="make the directory writable for `sds ca`",
                reason="authority_not_ready",
            ) from error

    def _read(self, key: PrivateKey) -> tuple[Signer, tuple[bytes, ...]]:
        chain = self._sorted(
            self._certificates(self.chain_file),
            roots := self._roots(),
        )
        root = verify_authority_chain(
            chain, roots=roots, public_key=key.public_key(), now=self.clock.now().wall
        )
        below = tuple(der for der in chain if der != root)
        return (
            make_signer(key=key, chain=below, root=root, trust_domain=self.trust_domain),
            roots,
        )

    def _roots(self) -> tuple[bytes, ...]:
        return self._anchors(self._certificates(self.roots_file))

    @staticmethod
    def _certificates(path: Path) -> tuple[bytes, ...]:
        return certificates_from_pem(read_file(path, max_bytes=_MAX_BYTES), what=str(path))

    def _anchors(self, roots: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Return the roots, if every verifier can end a chain in each of them.

        Raises:
            CertificateError: a root cannot be read, or is an intermediate without its root.
        """
        complete = set(complete_anchors(roots, f"root in {self.roots_file}"))
        for der in roots:
            if der not in complete:
                name = read_root(der).subject.rfc4514_string()
                raise CertificateError(
                    f"{self.roots_file}: {name} is not self-signed, and the certificate that "
                    "issued it is not there",
                    reason="certificate_constraint",
                    advice="put the self-signed root into roots_file: verifiers that want whole "
                    "chains, such as Envoy's SPIFFE validator, refuse chains that end in an "
                    "intermediate",
                )
        return roots

    @staticmethod
    def _sorted(chain: tuple[bytes, ...], roots: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Return the path from the issuing certificate, which comes first, to a root."""
        issuing, *others = [load_certificate(der) for der in chain]
        path = sorted_path(issuing, others, [read_root(der) for der in roots])
        return chain if path is None else tuple(certificate_der(one) for one in path)
