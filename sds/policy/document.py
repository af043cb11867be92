"""The policy document as typed and checked data.

Owns the model, and through it the JSON Schema in ``docs/policy.schema.json``: the rules
(:mod:`sds.policy.ruleset`) and what signing adds: an epoch, a validity period, the next signers,
reference values and federation. Invariants: an unknown field is an error; times are aware; a
document says nothing about whether it was signed (:mod:`sds.policy.trust` does that).
"""

# ruff: noqa: RUF012  pydantic copies the defaults of fields

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, StrictInt, model_validator

from sds.attestation.kind import require_usable
from sds.attestation.reference_values import ReferenceValues  # noqa: TC001  pydantic reads it
from sds.errors import ConfigurationError, EvidenceError
from sds.policy.federated import FederatedDomain  # noqa: TC001  as above
from sds.policy.keys import verification_key
from sds.policy.rule_fields import Moment, Name, PolicyModel
from sds.policy.ruleset import RuleSet, no_repeats
from sds.policy.threshold import TrustedKeys
from sds.workload.cri.settings import PodContents  # noqa: TC001  as above

MAX_EPOCH: Final = 2**63 - 1


class SignerKey(PolicyModel):
    """The key of one signer of later epochs."""

    name: Name
    public_key: Annotated[str, Field(description="Ed25519, P-256 or P-384, PEM")]


class Signers(PolicyModel):
    """Who must sign the epochs after this one. This one must be signed by them too."""

    threshold: Annotated[StrictInt, Field(ge=1)]
    keys: Annotated[list[SignerKey], Field(min_length=1, max_length=64)]

    @model_validator(mode="after")
    def _usable(self) -> Self:
        self.trusted()
        return self

    def trusted(self) -> TrustedKeys:
        """Return the keys as verification takes them."""
        try:
            return TrustedKeys(
                keys=tuple(verification_key(key.public_key, name=key.name) for key in self.keys),
                threshold=self.threshold,
            )
        except ConfigurationError as error:
            raise ValueError(str(error)) from error


class RoleReferenceValues(PolicyModel):
    """What evidence must show, by the role of the party that gives it (RFC 9334: reference values).

    Attributes:
        agents: what nodes that ask an authority must show; if absent, only the authority's
            configuration decides.
        authorities: what authorities must show to agents; if absent, only the agent's configuration
            decides.
    """

    agents: ReferenceValues | None = None
    authorities: ReferenceValues | None = None

    @model_validator(mode="after")
    def _usable(self) -> Self:
        for values in (self.agents, self.authorities):
            if values is not None:
                try:
                    require_usable(values)
                except EvidenceError as error:
                    raise ValueError(error.message) from error
        return self


class PolicyDocument(RuleSet):
    """One epoch of the policy of one trust domain.

    Attributes:
        version: the version of this format.
        epoch: rises with every change; a lower one is never accepted after a higher one.
        not_before: the moment before which the policy is refused.
        not_after: the moment from which the policy is no longer in force and nothing is allowed.
        description: a note for people.
        signers: who must sign the epochs after this one; unchanged if absent.
        reference_values: which evidence is acceptable.
        federation: other trust domains.
        pods: what the nodes' runtimes may start, as ``sds admission`` enforces it. Rules on
            ``cri:pod-digest`` may name them too.
    """

    version: Literal[1]
    epoch: Annotated[StrictInt, Field(ge=1, le=MAX_EPOCH)]
    not_before: Moment
    not_after: Moment
    description: str = ""
    signers: Signers | None = None
    reference_values: RoleReferenceValues = RoleReferenceValues()
    federation: list[FederatedDomain] = []
    pods: list[PodContents] = []

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.not_after <= self.not_before:
            raise ValueError("not_after is not later than not_before")
        no_repeats("federation", (domain.trust_domain for domain in self.federation))
        if self.trust_domain in {domain.trust_domain for domain in self.federation}:
            raise ValueError("federation names the policy's own trust domain")
        return self


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the document, for editors."""
    schema = PolicyDocument.model_json_schema(by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "attested-sds policy",
        **{key: value for key, value in schema.items() if key != "title"},
    }
