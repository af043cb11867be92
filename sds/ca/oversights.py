"""What an operator probably overlooked in an authority's configuration that could start.

Owns the sentences, which ``--check-config`` and the start tell. Invariant: it refuses nothing; each
sentence says what follows, and what to write if that is not meant.
"""

from __future__ import annotations

import contextlib
import stat
from typing import TYPE_CHECKING

from sds.attestation.reference_values import PLACEHOLDERS
from sds.ca.config import UpstreamSection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sds.ca.config import AuthorityConfig


def oversights(config: AuthorityConfig) -> Iterator[str]:
    """Yield warnings about this configuration and its files."""
    yield from _key(config)
    yield from _grants(config)
    if config.kubernetes is not None:
        both = sorted({*config.kubernetes.service_accounts} & {*config.kubernetes.authorities})
        if both:
            yield (
                f"kubernetes: {', '.join(both)} is under service_accounts and under authorities: "
                "it may be an authority only, and its agents are refused"
            )
    if config.verification.reference_values.has_placeholders:
        yield f"verification.{PLACEHOLDERS}"
    if said := config.verification.reference_values.snp.without_minimum:
        yield f"verification.reference_values.{said}"
    if isinstance(config.signer, UpstreamSection):
        yield from _above(config.signer, by_policy=config.policy is not None)


def _key(config: AuthorityConfig) -> Iterator[str]:
    key = config.tls.key
    if key is not None:
        with contextlib.suppress(OSError):  # reading it says more
            if key.stat().st_mode & stat.S_IROTH:
                yield f"everybody on this machine may read the private key {key} (tls.key)"


def _grants(config: AuthorityConfig) -> Iterator[str]:
    if not config.identities and config.policy is None and config.kubernetes is None:
        yield "neither identities nor policy are configured: everybody is refused"
    accepted = config.verification.reference_values
    if not accepted.measurements or accepted.others:
        return
    for number, section in enumerate(config.identities):
        # That of a TPM has another length, and these values say nothing about it.
        launch = len(section.measurement) == len(accepted.measurements[0])
        if launch and section.measurement not in accepted.measurements:
            yield (
                f"identities[{number}] grants names to a measurement that "
                "verification.reference_values.measurements does not have: whoever shows it is "
                "refused; add it there"
            )


def _above(section: UpstreamSection, *, by_policy: bool) -> Iterator[str]:
    if section.verification is None:
        return
    values = section.verification.reference_values
    if values.has_placeholders:
        yield f"signer.verification.{PLACEHOLDERS}"
    if said := values.snp.without_minimum:
        yield f"signer.verification.reference_values.{said}"
    if section.authority.tls == "attested" and values.any_machine and not by_policy:
        yield (
            "signer.verification.reference_values names no measurement: every machine with "
            "genuine evidence can pose as the authority above"
        )
