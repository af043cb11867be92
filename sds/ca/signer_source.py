"""Makes the source of the authority's own certificates from the section ``signer:``.

Owns that choice. Invariant: the authority above is asked with our evidence, and trusted by its own
evidence or by a configured root.
"""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from sds.attestation.build import Verification
from sds.attestation.settings import VerificationSection
from sds.authority.attested import AttestedAuthority
from sds.ca.config import AuthorityConfig, OperatorSection, SelfSignedSection, UpstreamSection
from sds.ca.operator_files import FromOperator
from sds.ca.signers import FromUpstream, SelfSigned
from sds.errors import ConfigurationError
from sds.policy.verification import PolicyVerifier, Role

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sds.attestation.evidence import Attester, Verifier
    from sds.attestation.reference_values import ReferenceValues
    from sds.ca.signers import SignerSource
    from sds.clock import Clock
    from sds.policy.holder import PolicyHolder

_POLL: Final = timedelta(seconds=1)


def upstream_verification(config: AuthorityConfig, clock: Clock) -> Verification | None:
    """Make the verifier of the authority above, if there is one that shows evidence."""
    signer = config.signer
    if not isinstance(signer, UpstreamSection) or signer.verification is None:
        return None
    return Verification(signer.verification, clock=clock)


@contextlib.asynccontextmanager
async def signer_source(
    config: AuthorityConfig,
    attester: Attester | None,
    verification: Verification | None,
    policy: PolicyHolder | None,
    clock: Clock,
) -> AsyncIterator[SignerSource]:
    """Make the source of our certificates, while the block runs.

    Args:
        config: the configuration, whose section ``signer`` decides.
        attester: gives our evidence to an authority above.
        verification: verifies that authority's evidence.
        policy: has our signed policy.
        clock: time.

    Raises:
        ConfigurationError: as for :func:`upstream_client`.
    """
    match config.signer:
        case SelfSignedSection() as section:
            yield SelfSigned(
                trust_domain=config.trust_domain,
                key_type=section.key_type,
                lifetime=section.lifetime,
                path_length=section.path_length,
                backdate=config.backdate,
                clock=clock,
            )
        case OperatorSection() as section:
            yield FromOperator(
                trust_domain=config.trust_domain,
                key_type=section.key_type,
                csr_file=section.csr_file,
                chain_file=section.chain_file,
                roots_file=section.roots_file,
                clock=clock,
                poll=_POLL,
            )
        case UpstreamSection() as section:
            upstream = upstream_client(section, attester, verification, policy, clock)
            try:
                yield FromUpstream(
                    trust_domain=config.trust_domain,
                    key_type=section.key_type,
                    lifetime=section.lifetime,
                    upstream=upstream,
                    clock=clock,
                )
            finally:
                await upstream.aclose()


def upstream_client(
    section: UpstreamSection,
    attester: Attester | None,
    verification: Verification | None,
    policy: PolicyHolder | None,
    clock: Clock,
) -> AttestedAuthority:
    """Make the client of the authority above; arguments as for :func:`signer_source`.

    Raises:
        ConfigurationError: we have no evidence, or its addresses or root cannot be used.
    """
    if attester is None:
        raise ConfigurationError(
            "signer.kind is upstream, and attestation.kind is missing",
            advice="the authority above signs for measured machines only",
        )
    verifier = verification.verifier() if verification is not None else None
    if policy is not None:
        verifier = _with_policys(policy, section.verification, verification, clock)
    return AttestedAuthority(
        section.authority.settings(),
        attester=attester,
        verifier=verifier,
        clock=clock,
        policy=policy,
    )


def _with_policys(
    policy: PolicyHolder,
    section: VerificationSection | None,
    verification: Verification | None,
    clock: Clock,
) -> Verifier:
    """Make a verifier of the authority above, with what the policy demands of authorities too."""

    def alone(values: ReferenceValues) -> Verifier:
        return Verification(VerificationSection(), clock=clock).verifier(values)

    return PolicyVerifier(
        policy,
        role=Role.AUTHORITIES,
        configured=None if section is None else section.reference_values,
        make=alone if verification is None else verification.verifier,
    )
