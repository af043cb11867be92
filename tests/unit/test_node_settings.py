from pathlib import Path
from typing import Any

import pytest
import yaml

from sds.agent.config import AgentConfig
from sds.agent.node_settings import NodeSettings
from sds.errors import ConfigurationError
from sds.settings import yamlfile
from sds.workload.kubernetes.settings import ServerSettings, api_server, kubelet_server
from sds.workload.mapping import Matching

RULE = {
    "name": "pods",
    "match": {"k8s:sa": "*"},
    "spiffe_id": "spiffe://{trust_domain}/{namespace}",
}
OWN = {"name": "web", "spiffe_id": "spiffe://example.org/web"}


def load(folder: Path, **change: Any) -> AgentConfig:
    document = {
        "trust_domain": "example.org",
        "run_dir": "/run/x",
        "authority": {"addresses": ["localhost:1"]},
        "node": {"attestors": ["kubernetes"]},
        "workloads": [RULE, OWN],
        **change,
    }
    path = folder / "agent.yaml"
    path.write_text(yaml.safe_dump({key: each for key, each in document.items() if each}))
    return yamlfile.load_file(path, AgentConfig)


def test_rules_and_sockets_in_one_list(tmp_path: Path) -> None:
    config = load(tmp_path, node={"attestors": ["unix", "kubernetes"], "matching": "all"})
    assert [rule.name for rule in config.rules.rules] == ["pods"]
    assert [one.name for one in config.sockets_of_their_own] == ["web"]
    assert [str(one.spiffe_id) for one in config.identities()] == ["spiffe://example.org/web"]
    assert config.rules.matching is Matching.ALL
    assert str(config.node_socket) == "/run/x/node/sds.sock"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"node": None}, r"workloads\[0\].match: rules are for callers of the node-wide socket"),
        ({"node": {"attestors": ["socket"]}}, "needs 'unix', 'kubernetes' or 'cri'"),
        ({"node": {"attestors": []}}, "node.attestors"),
        ({"node": {"attestors": ["unix", "unix"]}}, "listed twice"),
        ({"node": {"attestors": ["unix"], "hold": "0s"}}, "node.hold"),
        ({"workloads": [RULE, {**OWN, "name": "pods"}]}, "appears twice"),
        ({"attestation": {"kind": "kubernetes-token"}}, "authority.tls with root"),
    ],
)
def test_what_is_refused_says_why(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        load(tmp_path, **change)


def test_addresses_come_from_the_environment() -> None:
    pod = {
        "NODE_IP": "10.0.0.7",
        "KUBERNETES_SERVICE_HOST": "fd00::1",
        "KUBERNETES_SERVICE_PORT": "6443",
    }
    assert kubelet_server(ServerSettings(), pod).url == "https://10.0.0.7:10250"
    assert kubelet_server(ServerSettings(), {"NODE_IP": "fd00::7"}).url == "https://[fd00::7]:10250"
    assert api_server(ServerSettings(), pod).url == "https://[fd00::1]:6443"
    assert api_server(ServerSettings(url="https://x:1"), {}).url == "https://x:1"
    for find in (kubelet_server, api_server):
        with pytest.raises(ConfigurationError, match="is missing"):
            find(ServerSettings(), {})


def test_verification_is_skipped_to_loopback_only() -> None:
    skipping = ServerSettings(url="https://10.0.0.7:10250", insecure_skip_verify=True)
    with pytest.raises(ConfigurationError, match="must be verified"):
        kubelet_server(skipping, {})


def test_the_defaults_hold() -> None:
    settings = NodeSettings.model_validate({"attestors": ["kubernetes"]})
    assert (settings.hold.total_seconds(), settings.connections) == (30, 4096)
