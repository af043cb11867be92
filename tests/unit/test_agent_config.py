"""The agent's configuration: what holds, and what is refused and how."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sds.agent.build import authority_settings
from sds.agent.config import AgentConfig, OwnAuthoritySection
from sds.authority.istio_settings import IstioSettings
from sds.errors import ConfigurationError
from sds.settings import yamlfile

if TYPE_CHECKING:
    from pathlib import Path

GOOD: dict[str, Any] = {
    "trust_domain": "example.org",
    "run_dir": "/run/sds",
    "authority": {"addresses": ["127.0.0.1:8443"]},
    "workloads": [
        {"name": "web", "spiffe_id": "spiffe://example.org/web", "lifetime": "10s"},
        {"name": "api", "spiffe_id": "spiffe://example.org/api", "key_type": "rsa-3072"},
    ],
}
WORKLOAD = GOOD["workloads"][0]
ISTIO = {"kind": "istio", "addresses": ["istiod:15012"], "root": "r.pem", "token": "t"}
NODE = {"attestors": ["unix"]}
RULE = {"name": "rule", "match": {"unix:uid": "1"}}


def load(settings: dict[str, Any], folder: Path) -> AgentConfig:
    path = folder / "agent.yaml"
    path.write_text(yaml.safe_dump(settings))
    return yamlfile.load_file(path, AgentConfig)


def test_a_good_file(tmp_path: Path) -> None:
    config = load(GOOD, tmp_path)
    web, api = config.identities()
    assert str(web.spiffe_id) == "spiffe://example.org/web"
    assert web.lifetime == timedelta(seconds=10)
    assert api.key_type == "rsa-3072"
    assert str(config.workload_socket("web")) == "/run/sds/workloads/web/sds.sock"
    assert (config.sockets.socket_mode, config.sockets.directory_mode) == (0o600, 0o700)


def test_time_limits_of_the_authority_fit_the_shortest_lifetime(tmp_path: Path) -> None:
    config = load(GOOD, tmp_path)
    assert isinstance(config.authority, OwnAuthoritySection)
    settings = authority_settings(config, config.authority)
    assert (settings.connect_seconds, settings.answer_seconds) == (1.0, 2.0)
    written = {"addresses": ["127.0.0.1:1"], "connect": "3s", "answer": "7s"}
    config = load(GOOD | {"authority": written}, tmp_path)
    assert isinstance(config.authority, OwnAuthoritySection)
    settings = authority_settings(config, config.authority)
    assert (settings.connect_seconds, settings.answer_seconds) == (3.0, 7.0)


def test_places_of_pods_are_for_every_attestor_that_tells_them_apart(tmp_path: Path) -> None:
    places = {"cgroup_root": "/x", "runtime_cgroup": "/y/z"}
    config = load(GOOD | {"node": {"attestors": ["cri"], "kubernetes": places}}, tmp_path)
    assert config.node is not None


def test_istios_authority(tmp_path: Path) -> None:
    config = load(GOOD | {"authority": ISTIO}, tmp_path)
    assert isinstance(config.authority, IstioSettings)


def test_a_bare_number_is_seconds(tmp_path: Path) -> None:
    config = load(GOOD | {"workloads": [WORKLOAD | {"lifetime": 120}]}, tmp_path)
    assert [one.lifetime for one in config.workloads] == [timedelta(seconds=120)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trust_domian": "a"}, "trust_domian: unknown field, did you mean trust_domain?"),
        ({"workloads": [WORKLOAD | {"spifeid": 1}]}, "did you mean spiffe_id?"),
        ({"workloads": {}}, "workloads: expected a list, found a mapping"),
        ({"workloads": [WORKLOAD | {"lifetime": 1}]}, "whole seconds: use 2s or more"),
        ({"workloads": [WORKLOAD | {"lifetime": [10]}]}, "workloads[0].lifetime"),
        ({"workloads": [WORKLOAD | {"lifetime": "1s"}]}, "whole seconds: use 2s or more"),
        ({"workloads": [WORKLOAD | {"lifetime": "2500ms"}]}, "whole seconds"),
        (
            {"workloads": [WORKLOAD | {"key_type": "ed25519"}]},
            "workloads[0].key_type: Envoy accepts an Ed25519 certificate over SDS, but its server",
        ),
        ({"workloads": [WORKLOAD, WORKLOAD]}, "workloads[1].name: 'web' appears twice"),
        (
            {
                "node": {"attestors": ["socket", "unix"]},
                "workloads": [WORKLOAD | {"name": "node"}],
            },
            "workloads[0].name: 'node' is the socket:name of everybody on the node-wide socket",
        ),
        (
            {"workloads": [WORKLOAD | {"spiffe_id": "spiffe://other.org/web"}]},
            "is not in the trust domain example.org",
        ),
        ({"workloads": [WORKLOAD | {"spiffe_id": "spiffe://example.org"}]}, "has no path"),
        (
            {"node": NODE, "workloads": [RULE | {"spiffe_id": "spiffe://example.com/x"}]},
            "workloads[0].spiffe_id: 'spiffe://example.com/x' is not in the trust domain exam",
        ),
        (
            {"node": NODE, "workloads": [RULE | {"spiffe_id": "spiffe://{uid}.org/x"}]},
            "is not in the trust domain example.org",
        ),
        (
            {"node": NODE, "workloads": [RULE | {"spiffe_id": "spiffe://{trust_domain}"}]},
            "'spiffe://{trust_domain}' has no path",
        ),
        (
            {"node": {"attestors": ["kubernetes"], "csi": {"driver": "d" * 63}}},
            "node.csi.driver: the socket /var/lib/kubelet/plugins_registry/ddd",
        ),
        (
            {"workloads": [WORKLOAD | {"name": "../x"}]},
            "workloads[0].name: expected a name of at",
        ),
        ({"run_dir": "/" + "d" * 90}, "has a path of 114 bytes"),
        ({"sockets": {"socket_mode": 600}}, 'expected an octal mode in quotes, such as "0600"'),
        ({"sockets": {"socket_mode": "0060"}}, "must leave the agent itself reading"),
        ({"sockets": {"directory_mode": "0070"}}, "must leave the agent itself everything"),
        ({"sockets": {"directory_mode": "0777"}}, "who may write to a directory can replace"),
        ({"sockets": {"directory_mode": "0770"}}, "who may write to a directory can replace"),
        ({"sockets": {"directory_mode": "0703"}}, "who may write to a directory can replace"),
        ({"authority": {"addresses": []}}, "addresses"),
        (
            {"authority": {"kind": "vault", "addresses": ["a:1"]}},
            "expected sds, istio",
        ),
        (
            {"transport": "grpc", "node": {"attestors": ["unix"]}},
            "grpc.aio cannot tell the callers of the node-wide socket apart",
        ),
        (
            {"transport": "grpc", "budgets": {"owner": {"connections": 3}}},
            "budgets: grpc.aio cannot tell the owners of connections apart",
        ),
        (
            {"authority": ISTIO, "verification": {"trusted_roots": ["root.pem"]}},
            "verification: an authority of the kind istio gives no evidence",
        ),
        (
            {"node": {"attestors": ["cri"], "kubernetes": {"services": False}}},
            "node: kubernetes.services: attestors does not name 'kubernetes'",
        ),
        ({"transport": "quic"}, "transport"),
        ({"limits": {"message": "4mb"}}, "expected a size above 0 such as"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(GOOD | changes, tmp_path)
    assert said in str(caught.value)
    assert str(tmp_path / "agent.yaml") in str(caught.value)


@pytest.mark.parametrize("missing", ["trust_domain", "run_dir", "authority"])
def test_what_is_missing(missing: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"{missing}: missing"):
        load({name: value for name, value in GOOD.items() if name != missing}, tmp_path)
