"""Token evidence between a real attester, an API server over TLS, and a real authority's rules."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from sds.attestation.evidence import Claims, Evidence, EvidenceKind, ReportData, report_data
from sds.attestation.kubernetes.token import BoundTokenAttester
from sds.ca.kubernetes import KubernetesSection, NodeRules, kubernetes_tokens
from sds.clock import SystemClock
from sds.errors import EvidenceMalformedError, KubernetesError, RefusedError, SdsError
from sds.identity import KeyType, SpiffeId, parse_trust_domain
from sds.policy.nodes import Permit, RequestedCertificate
from sds.workload.kubernetes.scheduled import ScheduledPods
from sds.workload.kubernetes.settings import ServerSettings
from tests.support.authority import configured
from tests.support.front_door import until
from tests.support.kubernetes import NODE, cluster, pod
from tests.support.refusals import refused

if TYPE_CHECKING:
    from pathlib import Path

DATA = report_data(b"label", [b"nonce", b"items"])
NOW = datetime(2026, 6, 1, tzinfo=UTC)
AGENT = pod("agent-x7", namespace="attested-sds", account="agent", uid="d3b0")
OWN = {
    "kubernetes.io": {
        "namespace": "attested-sds",
        "pod": {"name": "agent-x7", "uid": "d3b0"},
        "serviceaccount": {"name": "agent"},
    }
}


def unsigned(claims: dict[str, Any]) -> str:
    """A token as our own pod has it; only the API server looks at its signature."""
    parts = [{"alg": "RS256", "kid": "x"}, claims]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts]
    return b".".join([*encoded, b"c2ln"]).decode()


async def test_the_attester_asks_for_a_token_bound_to_request_and_pod(tmp_path: Path) -> None:
    async with cluster(tmp_path) as kube:
        kube.token = unsigned(OWN)
        evidence = await BoundTokenAttester(kube.api()).attest(DATA)
        assert evidence.report.decode() == "bound-to-attested-sds:" + DATA.hex()
        (asked,) = kube.token_requests
        assert (asked["namespace"], asked["name"]) == ("attested-sds", "agent")
        assert asked["boundObjectRef"]["uid"] == "d3b0"
        assert asked["expirationSeconds"] == 600


@pytest.mark.parametrize(
    ("token", "answer"),
    [
        ("garbage", None),
        (unsigned({}), None),
        (unsigned({"kubernetes.io": {**OWN["kubernetes.io"], "namespace": "../x"}}), None),
        (unsigned(OWN), 403),
        (unsigned(OWN), b""),
        (unsigned(OWN), b"{}"),
        (unsigned(OWN), b'{"status": 7}'),
    ],
)
async def test_no_token_is_a_retriable_error_that_shows_none(
    tmp_path: Path, token: str, answer: int | bytes | None
) -> None:
    async with cluster(tmp_path) as kube:
        kube.token, kube.api_answer = token, answer
        with refused("token_unavailable") as caught:
            await BoundTokenAttester(kube.api()).attest(DATA)
        assert caught.value.retriable
        assert token not in str(caught.value)


def rules(
    *pods: dict[str, Any], synced: bool = True, outage: str = "", **section: Any
) -> NodeRules:
    known = ScheduledPods()
    known.replace(list(map(known.read, pods)))
    event = asyncio.Event()
    if synced:
        event.set()
    return NodeRules(
        section=KubernetesSection(service_accounts=["attested-sds/agent"], **section),
        trust_domain=parse_trust_domain("example.org"),
        pods=known,
        synced=event,
        others=configured(),
        outage=lambda: KubernetesError(outage) if outage else None,
    )


def claims(account: str = "agent", node: str = NODE, uid: str = "d3b0") -> Claims:
    return Claims(
        kind=EvidenceKind.KUBERNETES_TOKEN,
        measurement=node,
        simulated=False,
        attributes={
            "namespace": "attested-sds",
            "service_account": account,
            "pod": "agent-x7",
            "pod_uid": uid,
            "node": node,
            "bound": "true",
        },
    )


def wish(
    spiffe_id: str = "/ns/shop/sa/web", *dns: str, signing: bool = False
) -> RequestedCertificate:
    return RequestedCertificate(
        spiffe_id=SpiffeId.parse("spiffe://example.org" + spiffe_id),
        dns_names=dns,
        lifetime=timedelta(hours=9),
        key_type=KeyType.EC_P256,
        signing=signing,
    )


def test_a_node_gets_identities_of_its_own_pods() -> None:
    decided = rules(AGENT, pod("web-1")).decide(
        claims(), wish("/ns/shop/sa/web", "web.shop.svc"), now=NOW
    )
    assert (decided.lifetime, decided.path_length) == (timedelta(hours=1), None)


OVER = {**pod("web-1"), "status": {"phase": "Succeeded"}}
ELSEWHERE = {**pod("web-1"), "spec": {"nodeName": "node2", "serviceAccountName": "web"}}


@pytest.mark.parametrize(
    ("policy", "asks", "wanted", "reason"),
    [
        (rules(AGENT, pod("web-1"), synced=False), claims(), wish(), "authority_not_ready"),
        # A pod that this replica has not heard of is another one's matter while it hears nothing.
        (rules(AGENT, outage="away"), claims(), wish(), "authority_not_ready"),
        (rules(pod("web-1"), outage="away"), claims(), wish(), "authority_not_ready"),
        (rules(AGENT), claims(), wish(), "pod_not_on_node"),
        (rules(AGENT, OVER), claims(), wish(), "pod_not_on_node"),
        (rules(AGENT, ELSEWHERE), claims(), wish(), "pod_not_on_node"),
        (rules(AGENT, pod("etcd", account=None)), claims(), wish(), "pod_not_on_node"),
        (rules(AGENT, pod("web-1")), claims(), wish("/ns/shop/sa/api"), "pod_not_on_node"),
        (rules(AGENT, pod("web-1")), claims(), wish("/ns/other/sa/web"), "pod_not_on_node"),
        (rules(AGENT, ELSEWHERE), claims(node="node2"), wish(), "pod_not_on_node"),
        (rules(AGENT, pod("web-1")), claims(uid="gone"), wish(), "pod_not_on_node"),
        (
            rules(AGENT, pod("web-1")),
            claims(),
            wish("/ns/shop/sa/web", "web.other.svc"),
            "dns_name_not_allowed",
        ),
        (rules(AGENT, pod("web-1")), claims(), wish("", signing=True), "signing_not_allowed"),
        (
            rules(AGENT, pod("web-1"), authorities=["attested-sds/agent"]),
            claims(),
            wish(),
            "signing_not_allowed",
        ),
        (
            rules(AGENT, authorities=["attested-sds/agent"]),
            claims(),
            wish("/x", signing=True),
            "signing_not_allowed",
        ),
    ],
)
def test_what_a_node_may_not_have(
    policy: NodeRules, asks: Claims, wanted: RequestedCertificate, reason: str
) -> None:
    with pytest.raises(RefusedError) as caught:
        policy.decide(asks, wanted, now=NOW)
    assert caught.value.reason == reason


def test_an_authoritys_account_may_sign_and_nothing_else() -> None:
    policy = rules(AGENT, authorities=["attested-sds/agent"])
    assert policy.decide(claims(), wish("", signing=True), now=NOW).path_length == 0


def test_an_authoritys_certificate_ends_although_its_account_asks_for_a_century() -> None:
    """A token proves an account and no code, and the pod behind it may be gone in an hour."""
    wanted = replace(wish("", signing=True), lifetime=timedelta(days=36_500))
    accounts: dict[str, Any] = {"authorities": ["attested-sds/agent"]}
    assert rules(AGENT, **accounts).decide(claims(), wanted, now=NOW).lifetime == timedelta(days=7)
    longer = rules(AGENT, authority_max_lifetime="30d", **accounts)
    assert longer.decide(claims(), wanted, now=NOW).lifetime == timedelta(days=30)


class Granting:
    """A signed policy that grants five minutes, and P-384 only."""

    digest, epoch, document = b"d" * 32, 7, b""

    def admit(self, *, digest: bytes, epoch: int, document: bytes) -> None:
        """Admit everybody."""

    def decide(self, claims: Claims, wanted: RequestedCertificate, *, now: datetime) -> Permit:
        if wanted.key_type is not KeyType.EC_P384:
            raise RefusedError("P-384 only", reason="key_type_not_allowed")
        return Permit(
            group="cluster",
            lifetime=min(wanted.lifetime, timedelta(minutes=5)),
            path_length=3 if wanted.signing else None,
        )


def test_a_signed_policy_decides_about_tokens_too() -> None:
    cluster_alone = rules(AGENT, pod("web-1"))
    both = replace(cluster_alone, others=Granting(), policy_decides=True)
    with refused("key_type_not_allowed"):
        both.decide(claims(), wish(), now=NOW)
    ours = replace(wish(), key_type=KeyType.EC_P384)
    assert both.decide(claims(), ours, now=NOW).lifetime == timedelta(minutes=5)
    elsewhere = replace(wish("/ns/other/sa/web"), key_type=KeyType.EC_P384)
    with refused("pod_not_on_node"):
        both.decide(claims(), elsewhere, now=NOW)
    signing = replace(
        rules(AGENT, authorities=["attested-sds/agent"]), others=Granting(), policy_decides=True
    )
    below = replace(wish("", signing=True), key_type=KeyType.EC_P384)
    assert signing.decide(claims(), below, now=NOW).path_length == 0
    # Without a signed policy the cluster alone decides, as documented.
    assert cluster_alone.decide(claims(), wish(), now=NOW).lifetime > timedelta(minutes=5)


def test_other_evidence_is_not_decided_here() -> None:
    measured = Claims(kind=EvidenceKind.SEV_SNP, measurement="ab" * 48, simulated=False)
    with refused("measurement_not_allowed"):
        rules(AGENT, pod("web-1")).decide(measured, wish(), now=NOW)


def test_pods_come_and_go() -> None:
    pods = ScheduledPods()
    pending = {**pod("web-1"), "spec": {"serviceAccountName": "web"}}
    uid = pending["metadata"]["uid"]
    assert not pods.apply("ADDED", pending)
    placed = {**pending, "spec": {**pending["spec"], "nodeName": NODE}}
    assert pods.apply("MODIFIED", placed)
    assert not pods.apply("MODIFIED", placed)
    assert pods.runs(uid, NODE)
    assert pods.accounts(NODE) == {("shop", "web")}
    assert pods.apply("MODIFIED", {**placed, "status": {"phase": "Failed"}})
    assert pods.apply("ADDED", placed)
    assert pods.apply("DELETED", placed)
    assert not pods.runs(uid, NODE)


@pytest.mark.parametrize("template", ["{pod}", "{0}", "{", "{namespace.x}", "x{namespace!z}"])
def test_a_bad_template_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="a template with"):
        KubernetesSection(service_accounts=["a/b"], spiffe_id=template)


async def test_an_authority_learns_keys_and_pods_from_the_api_server(tmp_path: Path) -> None:
    """From a bound token to a grant, with everything that the authority asks the cluster for."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = jwt.get_algorithm_by_name("RS256").to_jwk(key.public_key(), as_dict=True)
    now = datetime.now(UTC)
    claims_of_agent = {
        "iss": "https://kubernetes.default.svc.cluster.local",
        "aud": ["attested-sds:" + DATA.hex()],
        "exp": int((now + timedelta(minutes=10)).timestamp()),
        "nbf": int(now.timestamp()),
        "sub": "system:serviceaccount:attested-sds:agent",
        "kubernetes.io": {**OWN["kubernetes.io"], "node": {"name": NODE}},
    }
    token = jwt.encode(claims_of_agent, key, algorithm="RS256", headers={"kid": "k1"})
    evidence = Evidence(kind=EvidenceKind.KUBERNETES_TOKEN, report=token.encode())
    async with cluster(tmp_path) as kube:
        kube.jwks = json.dumps({"keys": [{**public, "kid": "k1", "alg": "RS256"}]}).encode()
        kube.pods = [AGENT, pod("web-1")]
        section = KubernetesSection(
            service_accounts=["attested-sds/agent"],
            api=ServerSettings(url=kube.url, ca_file=kube.ca_file, token_file=kube.token_file),
        )
        async with kubernetes_tokens(
            section,
            trust_domain=parse_trust_domain("example.org"),
            policy=configured(),
            verifier=Nobody(),
            clock=SystemClock(),
        ) as (policy, verifier):

            def granted() -> bool:
                try:
                    found = verifier.verify(evidence, data=DATA, now=datetime.now(UTC))
                    policy.decide(found, wish(), now=now)
                except SdsError as error:
                    if error.reason not in {"signature_invalid", "authority_not_ready"}:
                        raise
                    return False  # keys and pods are on their way
                return True

            await until(granted)
            measured = Evidence(kind=EvidenceKind.SEV_SNP, report=b"")
            with pytest.raises(EvidenceMalformedError, match="nobody"):
                verifier.verify(measured, data=DATA, now=now)


class Nobody:
    """The verifier of other kinds."""

    def verify(self, evidence: Evidence, *, data: ReportData, now: datetime) -> Claims:
        raise EvidenceMalformedError("nobody verifies that here")
