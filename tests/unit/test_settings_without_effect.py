"""What a person writes into a configuration has an effect, or is refused with its field."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sds.agent.config import AgentConfig
from sds.ca.config import AuthorityConfig
from sds.errors import ConfigurationError
from sds.settings import yamlfile

if TYPE_CHECKING:
    from pydantic import BaseModel

AGENT = "trust_domain: a\nrun_dir: /run/x\n"
OURS = "authority: {addresses: ['a:1'], tls: {root: /r, server_name: a}}\n"
ISTIO = "authority: {kind: istio, addresses: ['a:1'], root: /r, token: /t}\n"
WORKLOAD = "workloads: [{name: w, spiffe_id: 'spiffe://a/w'}]\n"
RULE = (
    "workloads: [{name: w, match: {'unix:uid': '0'}, spiffe_id: 'spiffe://a/w', "
    "service_dns_names: ['*.shop.svc']}]\n"
)


def read(model: type[BaseModel], text: str) -> BaseModel:
    return yamlfile.validate(yamlfile.parse(text, what="x"), model, what="x")


IDLE = [
    # Nothing takes or checks such evidence.
    (ISTIO + "attestation: {kind: sev-snp}\n", "attestation: an authority of the kind istio"),
    (ISTIO + "verification: {collateral: /c}\n", "verification: an authority of the kind istio"),
    # Only sockets of single workloads have these permissions.
    (OURS + "node: {attestors: [unix]}\nsockets: {socket_mode: '0660'}\n", "sockets: no workload"),
    (OURS + "sockets: {group: mesh}\n", "sockets: no workload"),
    (OURS + RULE + "node: {attestors: [unix]}\n", r"workloads\[0\].service_dns_names: nobody"),
    (
        OURS + RULE + "node: {attestors: [unix, kubernetes], kubernetes: {services: false}}\n",
        r"workloads\[0\].service_dns_names: nobody",
    ),
    (
        OURS
        + "node: {attestors: [kubernetes], kubernetes: {services: false, api: {url: 'https://b'}}}\n",
        "node.kubernetes.api: it is for names of Services",
    ),
    (
        OURS
        + "node: {attestors: [kubernetes], kubernetes: {services: false, cluster_domain: b}}\n",
        "node.kubernetes.cluster_domain: it is for names of Services",
    ),
    (
        OURS + "node: {attestors: [kubernetes], kubernetes: {kubelet: {ca_file: /c, "
        "url: 'https://127.0.0.1:10250', insecure_skip_verify: true}}}\n",
        "node.kubernetes.kubelet.ca_file: insecure_skip_verify is true",
    ),
    (
        OURS + "node: {attestors: [kubernetes], largest_executable: 1048576}\n",
        "node.largest_executable: attestors does not name 'unix'",
    ),
    (
        OURS + "attestation: {kind: sev-snp, certificate_cache: /c}\n",
        "attestation.certificate_cache: it is for certificate_server, which is missing",
    ),
    (
        OURS + "attestation: {kind: sev-snp, product: genoa}\n",
        "attestation.product: it is for certificate_server, which is missing",
    ),
    (
        OURS
        + "attestation: {kind: kubernetes-token, projected_token: /t, api: {url: 'https://b'}}\n",
        "attestation.api: projected_token is sent as it is",
    ),
    (
        OURS + "attestation: {kind: tpm, exchange_key: {pcr: 13, runtime_register: /r:sha384}}\n",
        "attestation.exchange_key: give pcr or runtime_register, not both",
    ),
    *(
        (
            OURS + f"verification: {{collateral: /c, fetch: {{products: [genoa], {field}}}}}\n",
            f"verification.fetch.{field.partition(':')[0]}: it is about Intel's collateral",
        )
        for field in (
            "pcs: 'https://b'",
            "root_list: 'https://b'",
            "update: early",
            "tcb_evaluation_data_number: 17",
            "authorities: [platform]",
        )
    ),
    (
        OURS
        + "verification: {collateral: /c, fetch: {fmspcs: ['00906ed50000'], kds: 'http://b'}}\n",
        "verification.fetch.kds: it is about AMD's lists",
    ),
    (
        OURS + "federation: {bundles: [{trust_domain: b, file: /b, root: /r}]}\n",
        r"federation.bundles\[0\]: root belongs to https_web",
    ),
]


@pytest.mark.parametrize(("text", "said"), IDLE)
def test_an_agent_refuses_what_nothing_would_read(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^x: {said}"):
        read(AgentConfig, AGENT + text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            f"identities: [{{measurement: '{'00' * 48}', signing: {{}}, dns_names: ['b.c']}}]\n",
            r"identities\[0\].dns_names: they come with a SPIFFE ID",
        ),
        (
            "attestation: {kind: kubernetes-token, projected_token: /t}\n",
            "attestation.kind: a Kubernetes token is evidence for an authority above",
        ),
    ],
)
def test_an_authority_refuses_what_nothing_would_read(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^x: {said}"):
        read(AuthorityConfig, "trust_domain: a\n" + text)


@pytest.mark.parametrize(
    "text",
    [
        OURS + WORKLOAD + "sockets: {socket_mode: '0660'}\n",
        OURS + RULE.replace("unix:uid", "k8s:ns") + "node: {attestors: [kubernetes]}\n",
        ISTIO + WORKLOAD,
        OURS + "attestation: {kind: sev-snp, certificate_server: 'http://b', product: genoa}\n",
        OURS + "verification: {collateral: /c, fetch: {products: [genoa], kds: 'http://b'}}\n",
        OURS + "verification: {collateral: /c, fetch: {products: [genoa], update: standard}}\n",
    ],
)
def test_what_has_an_effect_is_taken(text: str) -> None:
    read(AgentConfig, AGENT + text)


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ("metrics", "/run/x/admin.sock"),
        ("status_page", "/run/x/node/sds.sock"),
        ("health", "/run/x/workloads/../workloads/w/sds.sock"),
        ("federation", "/run/x/admin.sock"),
    ],
)
def test_no_listener_is_in_the_place_of_a_socket_of_the_agents_own(field: str, path: str) -> None:
    listen = f"{{listen: 'unix:{path}'}}"
    listen = f"{{serve: {listen}}}" if field == "federation" else listen
    text = f"{AGENT}{OURS}{WORKLOAD}node: {{attestors: [unix]}}\n{field}: {listen}\n"
    with pytest.raises(ConfigurationError, match=r"\.listen: .* is a socket of the agent's own"):
        read(AgentConfig, text)
