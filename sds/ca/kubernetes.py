"""Decides what a Kubernetes token of a node without confidential hardware may ask for.

Owns the section ``kubernetes:`` of the authority, the rules behind it, and what they need to know
(the issuer's keys, which pods run where). Invariants: it is off unless the section is present; a
node gets only identities of pods that run on it; the pod that asks must itself still run on the
node that its token names; until pods and keys have been read once, every token is refused.

Trust: anyone who controls the API server decides here (docs/kubernetes.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import AfterValidator, Field

from sds.attestation.evidence import Claims, Evidence, EvidenceKind
from sds.attestation.kubernetes.token import JwksKeys, KubernetesTokenVerifier, TokenRules
from sds.ca.token_keys import TokenKeys, key_reader
from sds.errors import ConfigurationError, EvidenceMalformedError, RefusedError
from sds.identity import SpiffeId
from sds.policy.nodes import Permit, RequestedCertificate
from sds.rules.pattern import dns_parts, parse_dns_pattern
from sds.rules.template import check_result, check_template, fill
from sds.settings.field_types import Duration, PathField, Settings
from sds.settings.yamlfile import read
from sds.supervision import supervised
from sds.workload.kubernetes.scheduled import PODS_PATH, ScheduledPods
from sds.workload.kubernetes.settings import ServerSettings, api_server
from sds.workload.kubernetes.watch import ListWatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import datetime
    from pathlib import Path

    from sds.attestation.evidence import ReportData, Verifier
    from sds.ca.issuance import IssuancePolicy
    from sds.clock import Clock
    from sds.errors import KubernetesError
    from sds.identity import TrustDomain
    from sds.settings.checking import ConfigurationChecks

_LOGGER = logging.getLogger(__name__)
_KNOWN: Final = ("namespace", "service_account", "trust_domain")


def _template(text: str) -> str:
    return check_template(text, known=_KNOWN)


Template = Annotated[str, AfterValidator(_template)]
IdTemplate = Annotated[Template, AfterValidator(partial(check_result, parse=SpiffeId.parse))]
PatternTemplate = Annotated[
    Template, AfterValidator(partial(check_result, parse=parse_dns_pattern))
]
Account = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9.-]*$")]
"""Of a service account: namespace and name."""


class KubernetesSection(Settings):
    """Tokens of a Kubernetes cluster as evidence of nodes without confidential hardware."""

    issuer: Annotated[str, Field(pattern=r"^[!-~]+$")] = Field(
        default="https://kubernetes.default.svc.cluster.local",
        description="The issuer in the cluster's service-account tokens.",
    )
    api: ServerSettings = Field(
        default=ServerSettings(),
        description="The API server. The authority watches pods there and reads the issuer's keys.",
    )
    jwks_file: PathField | None = Field(
        default=None, description="File with the issuer's keys (JWKS). If unset: the API server's."
    )
    service_accounts: Annotated[list[Account], Field(min_length=1)] = Field(
        description="The accounts of agents, as `namespace/name`."
    )
    authorities: list[Account] = Field(
        default=[],
        description="The accounts of authorities that may be below this one, as `namespace/name`.",
    )
    unbound_tokens: bool = Field(
        default=False,
        description="Accept projected tokens too. Such a token binds nothing: anyone who sees "
        "it can ask for everything that its node may have, until it expires.",
    )
    spiffe_id: IdTemplate = Field(
        default="spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}",
        description="Template of the only identity that a pod may have.",
    )
    dns_names: list[PatternTemplate] = Field(
        default=["*.{namespace}.svc.cluster.local", "*.{namespace}.svc", "*.{namespace}"],
        description="Templates of patterns of DNS names that it may have.",
    )
    max_lifetime: Duration = Field(
        default=timedelta(hours=1),
        description="The longest lifetime. A request for more is shortened to it.",
    )
    authority_max_lifetime: Duration = Field(
        default=timedelta(days=7),
        description="The longest lifetime of the certificates of `authorities`. A request for more "
        "is shortened to it.",
    )

    def rules(self) -> TokenRules:
        """Return what a token must satisfy."""
        return TokenRules(
            issuer=self.issuer,
            accounts=frozenset([*self.service_accounts, *self.authorities]),
            unbound=self.unbound_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRules:
    """Issuance policy for tokens; everything else goes to ``others``.

    With ``policy_decides``, a token needs both the cluster's facts about its node and a grant of
    the signed policy, whose limits count too.
    """

    section: KubernetesSection
    trust_domain: TrustDomain
    pods: ScheduledPods
    synced: asyncio.Event
    others: IssuancePolicy
    policy_decides: bool = False
    outage: Callable[[], KubernetesError | None] = lambda: None
    """Returns why the pods cannot be watched now, or None."""

    @property
    def digest(self) -> bytes:
        return self.others.digest

    @property
    def epoch(self) -> int:
        return self.others.epoch

    @property
    def document(self) -> bytes:
        return self.others.document

    def admit(self, *, digest: bytes, epoch: int, document: bytes) -> None:
        self.others.admit(digest=digest, epoch=epoch, document=document)

    def decide(self, claims: Claims, wanted: RequestedCertificate, *, now: datetime) -> Permit:
        """Grant an identity of a pod on the token's node. In this order:

        1. the pods were read once; 2. the pod that asks runs on the node that its token names;
        3. an authority's account may sign, and only it; 4. the SPIFFE ID is that of a pod on the
        node; 5. every DNS name matches a pattern of such a pod's namespace; 6. where a signed
        policy decides, it grants this to the node too, and the shorter lifetime counts. The
        section bounds the lifetime of workloads and that of authorities.

        Raises:
            RefusedError: the reason says what is not allowed.
        """  # noqa: D415  a list follows
        if claims.kind is not EvidenceKind.KUBERNETES_TOKEN:
            return self.others.decide(claims, wanted, now=now)
        own = self._by_cluster(claims, wanted)
        if not self.policy_decides:
            return own
        theirs = self.others.decide(claims, wanted, now=now)  # 6
        lengths = [one.path_length for one in (own, theirs) if one.path_length is not None]
        return Permit(
            group=theirs.group,
            lifetime=min(own.lifetime, theirs.lifetime),
            path_length=min(lengths, default=None),
        )

    def _by_cluster(self, claims: Claims, wanted: RequestedCertificate) -> Permit:
        node, facts = claims.measurement, claims.attributes
        if not self.synced.is_set():  # 1
            raise RefusedError("the cluster's pods are not known yet", reason="authority_not_ready")
        if not self.pods.runs(facts["pod_uid"], node):  # 2
            self._require_news()
            raise RefusedError(
                f"pod {facts['namespace']}/{facts['pod']} does not run on node {node} (any more)",
                reason="pod_not_on_node",
            )
        account = f"{facts['namespace']}/{facts['service_account']}"
        if wanted.signing != (account in self.section.authorities):  # 3
            raise RefusedError(
                f"the service account {account} "
                + ("may not be an authority" if wanted.signing else "is an authority's"),
                reason="signing_not_allowed",
            )
        if wanted.signing:
            return self._signing(wanted)
        accounts = [
            (namespace, name)
            for namespace, name in self.pods.accounts(node)
            if self._fill(self.section.spiffe_id, namespace, name) == str(wanted.spiffe_id)
        ]
        if not accounts:  # 4
            self._require_news()
            raise RefusedError(
                f"no pod on node {node} has the identity {wanted.spiffe_id}",
                reason="pod_not_on_node",
            )
        patterns = [
            parse_dns_pattern(self._fill(template, namespace, name))
            for template in self.section.dns_names
            for namespace, name in accounts
        ]
        for name in wanted.dns_names:  # 5
            if not any(pattern.matches(dns_parts(name)) for pattern in patterns):
                raise RefusedError(
                    f"{wanted.spiffe_id} may not have the DNS name {name!r}",
                    reason="dns_name_not_allowed",
                )
        return Permit(lifetime=min(wanted.lifetime, self.section.max_lifetime))

    def _require_news(self) -> None:
        """Check, before an unknown pod is refused, that we would have been told of it.

        Raises:
            RefusedError: ``authority_not_ready``: the API server cannot be asked now; another
                replica may know the pod.
        """
        error = self.outage()
        if error is not None:
            raise RefusedError(
                f"the cluster's pods cannot be watched now: {error}", reason="authority_not_ready"
            )

    def _signing(self, wanted: RequestedCertificate) -> Permit:
        if wanted.spiffe_id.path or wanted.dns_names:
            raise RefusedError(
                f"{wanted.spiffe_id} is not an authority's name", reason="signing_not_allowed"
            )
        lifetime = min(wanted.lifetime, self.section.authority_max_lifetime)
        return Permit(lifetime=lifetime, path_length=0)

    def _fill(self, template: str, namespace: str, account: str) -> str:
        values = {
            "trust_domain": self.trust_domain,
            "namespace": namespace,
            "service_account": account,
        }
        return fill(template, values.__getitem__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ByKind:
    """Dispatches evidence to the verifier of its kind."""

    tokens: KubernetesTokenVerifier
    others: Verifier

    def verify(self, evidence: Evidence, *, data: ReportData, now: datetime) -> Claims:
        chosen: Verifier = self.others
        if evidence.kind is EvidenceKind.KUBERNETES_TOKEN:
            chosen = self.tokens
        return chosen.verify(evidence, data=data, now=now)


def check_kubernetes(section: KubernetesSection, checks: ConfigurationChecks) -> None:
    """Check the API server's address, and the files that the section names."""
    with checks.of("kubernetes.api"):
        server = api_server(section.api, os.environ)
        roots = None if server.insecure_skip_verify else server.ca_file
        checks.kubernetes_server("kubernetes.api", roots=roots, token=server.token_file)
    if section.jwks_file is not None:
        with checks.of("kubernetes.jwks_file"):
            _check_keys(section.jwks_file)


def _check_keys(file: Path) -> None:
    try:
        JwksKeys().replace(read(file))
    except EvidenceMalformedError as error:
        raise ConfigurationError(f"kubernetes.jwks_file: {file}: {error}") from error


@contextlib.asynccontextmanager
async def kubernetes_tokens(
    section: KubernetesSection,
    *,
    trust_domain: TrustDomain,
    policy: IssuancePolicy,
    verifier: Verifier,
    clock: Clock,
    policy_decides: bool = False,
) -> AsyncIterator[tuple[IssuancePolicy, Verifier]]:
    """Make a policy and a verifier that know tokens, and run the tasks behind them.

    Args:
        section: the configuration.
        trust_domain: the trust domain of the identities.
        policy: decides for every other kind of evidence.
        verifier: verifies every other kind of evidence.
        clock: time.
        policy_decides: whether ``policy`` must grant what tokens ask for too.

    Raises:
        ConfigurationError: the API server's address is unknown, or the key file cannot be used.
    """
    if section.jwks_file is not None:
        _check_keys(section.jwks_file)
    from sds.workload.kubernetes.api import ApiClient  # noqa: PLC0415  loads aiohttp

    pods = ScheduledPods()
    async with ApiClient(api_server(section.api, os.environ)) as api:
        watch = ListWatch(api, clock, PODS_PATH, pods)
        keys = TokenKeys(key_reader(section.jwks_file, api), clock=clock)
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(supervised("pods", watch.run, clock=clock), name="pods"),
                tasks.create_task(supervised("token-keys", keys.run, clock=clock), name="keys"),
            ]
            try:
                yield (
                    NodeRules(
                        section=section,
                        trust_domain=trust_domain,
                        pods=pods,
                        synced=watch.synced,
                        outage=lambda: watch.error,
                        others=policy,
                        policy_decides=policy_decides,
                    ),
                    ByKind(
                        tokens=KubernetesTokenVerifier(keys=keys, rules=section.rules()),
                        others=verifier,
                    ),
                )
            finally:
                for task in running:
                    task.cancel()
