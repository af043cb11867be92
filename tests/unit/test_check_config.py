"""``--check-config``: what cannot start is refused, with the field, and all of it at once."""

from __future__ import annotations

import copy
import dataclasses
import errno
import grp
import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sds.agent.build import warnings
from sds.agent.check import check_configuration
from sds.agent.config import AgentConfig
from sds.clock import SystemClock
from sds.errors import ConfigurationError
from sds.pki import certificate_pem
from sds.settings import yamlfile
from sds.settings.checking import ConfigurationChecks
from sds.workload.mapping import NAMES_IN_NAMESPACE
from tests.support.certificates import ca_wish, self_signed
from tests.support.node import short_folder
from tests.support.policies import Signatory, document, sign
from tests.support.serving import root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DELETED = object()


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """pytest's own is as long as its runs are many, and paths of sockets have a bound."""
    with short_folder() as folder:
        yield folder


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A configuration that uses every kind of file, all of them good."""
    alice = Signatory("alice")
    (tmp_path / "alice.pub").write_text(alice.public.pem)
    now = datetime.now(UTC)
    times = {
        "not_before": (now - timedelta(hours=1)).isoformat(),
        "not_after": (now + timedelta(hours=1)).isoformat(),
    }
    (tmp_path / "policy.json").write_bytes(sign(document(1, **times), alice))
    (tmp_path / "unsigned.json").write_bytes(b'{"epoch": 1}')
    stale = {**times, "not_after": (now - timedelta(minutes=1)).isoformat()}
    (tmp_path / "expired.json").write_bytes(sign(document(1, **stale), alice))
    (tmp_path / "root.pem").write_bytes(certificate_pem([root("one").der]))
    (tmp_path / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nAA\n")
    wish = dataclasses.replace(
        ca_wish("old"), not_before=now - timedelta(days=2), not_after=now - timedelta(days=1)
    )
    (tmp_path / "expired.pem").write_bytes(certificate_pem([self_signed(wish).der]))
    begins_later = dataclasses.replace(
        ca_wish("new"), not_before=now + timedelta(days=1), not_after=now + timedelta(days=2)
    )
    (tmp_path / "future.pem").write_bytes(certificate_pem([self_signed(begins_later).der]))
    (tmp_path / "two").write_text("one two\n")
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    return {
        "trust_domain": "example.org",
        "run_dir": str(tmp_path / "run"),
        "authority": {
            "addresses": ["127.0.0.1:8443"],
            "tls": {"root": str(tmp_path / "root.pem"), "server_name": "ca.test"},
        },
        "attestation": {"kind": "simulated", "descriptor": 3},
        "policy": {"file": str(tmp_path / "policy.json"), "keys": [str(tmp_path / "alice.pub")]},
        "workloads": [{"name": "web", "spiffe_id": "spiffe://example.org/web"}],
        "federation": {
            "bundles": [{"trust_domain": "other.test", "file": str(tmp_path / "root.pem")}]
        },
        "metrics": {"listen": "127.0.0.1:9464"},
        "status_page": {"listen": f"unix:{tmp_path / 'page.sock'}"},
    }


def changed(settings: dict[str, Any], at: str, value: object) -> dict[str, Any]:
    made = copy.deepcopy(settings)
    *parents, last = at.split(".")
    here: Any = made
    for step in parents:
        here = here[int(step)] if step.isdigit() else here.setdefault(step, {})
    if value is DELETED:
        del here[last]
    else:
        here[int(last) if last.isdigit() else last] = value
    return made


def check(settings: dict[str, Any], folder: Path) -> None:
    path = folder / "agent.yaml"
    path.write_text(yaml.safe_dump(settings))
    config = yamlfile.load_file(path, AgentConfig)
    check_configuration(config, what=str(path), clock=SystemClock(), environment={})


def test_what_is_good_is_good_and_nothing_is_made(settings: dict[str, Any], tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    check(settings, tmp_path)
    assert set(tmp_path.iterdir()) - before == {tmp_path / "agent.yaml"}


RULE = {"name": "pods", "match": {"k8s:ns": "a"}, "spiffe_id": "spiffe://example.org/p"}


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        ("attestation", {}, "attestation.kind: it is missing"),
        ("attestation", {"kind": "simulated"}, "attestation.descriptor is missing"),
        ("attestation", {"kind": "sev-snp"}, "attestation.kind"),
        (
            "attestation",
            {"descriptor": 3},
            "descriptor: it is for the kinds simulated, and kind is",
        ),
        (
            "attestation",
            {"kind": "tdx", "privilege_level": 0},
            "attestation.privilege_level: it is for the kinds auto, sev-snp, and kind is tdx",
        ),
        (
            "node",
            {"attestors": ["unix"], "kubernetes": {"services": False}},
            "node.kubernetes: attestors names neither",
        ),
        (
            "node",
            {"attestors": ["unix"], "cri": {"socket": "/run/x"}},
            "node.cri: attestors does not name 'cri'",
        ),
        (
            "verification",
            {"collateral": "{f}/empty/x", "fetch": {"fmspcs": ["0" * 12]}},
            "verification.collateral: {f}/empty is not a directory",
        ),
        (
            "attestation",
            {"kind": "kubernetes-token", "projected_token": "{f}/none"},
            "attestation.projected_token: {f}/none cannot be read",
        ),
        (
            "attestation",
            {"kind": "kubernetes-token", "projected_token": "{f}/two"},
            "attestation.projected_token: {f}/two is not one word of ASCII",
        ),
        ("authority.addresses", ["ca.example"], "authority.addresses[0]"),
        ("authority.addresses", ["a:" + "9" * 5000], "authority.addresses[0]"),
        ("authority.addresses", ["a:1", "a:99999"], "authority.addresses[1]"),
        ("authority.tls.root", "{f}/none", "{f}/none cannot be read"),
        ("authority.tls.root", "{f}/broken.pem", "authority.tls.root: {f}/broken.pem"),
        ("authority.tls.root", "{f}/empty", "authority.tls.root"),
        ("authority.tls.root", "{f}/expired.pem", "authority.tls.root: no certificate in {f}/exp"),
        ("authority.tls.root", "{f}/future.pem", "authority.tls.root: no certificate in {f}/fut"),
        ("authority.tls.root", "none.pem", "relative to"),
        ("authority.addresses", ["https://ca.example:1"], "authority.addresses[0]"),
        ("authority.addresses", ["2001:db8::1:8443"], "[2001:db8::1]:8443"),
        ("authority.addresses", ["[ca.example]:8443"], "authority.addresses[0]"),
        ("verification", {"trusted_roots": ["{f}/none"]}, "verification"),
        ("verification", {"revocation_lists": ["{f}/broken.pem"]}, "verification"),
        ("policy.file", "{f}/none.json", "policy"),
        ("policy.file", "{f}/unsigned.json", "policy"),
        ("policy.file", "{f}/expired.json", "policy"),
        ("policy.keys", ["{f}/none.pub"], "policy"),
        ("policy.keys", ["{f}/root.pem"], "policy"),
        ("policy.threshold", 4, "policy"),
        ("run_dir", "{f}/empty/run", "run_dir: {f}/empty is not a directory"),
        ("policy_copy", "{f}/none/p.json", "policy_copy: {f}/none is not a directory"),
        ("run_dir", "{f}/link", "run_dir: directory {f}/link is not safe for sockets"),
        ("run_dir", "{f}/open", "run_dir: directory {f}/open is not safe for sockets"),
        ("policy", {"directory": "{f}/unsigned.json", "keys": ["{f}/alice.pub"]}, "no directory"),
        ("policy.file", "{f}", "policy.file: {f} is a directory (name it as policy.directory)"),
        ("policy.file", "", "policy.file: expected a path"),
        ("policy.keys", ["~/alice.pub"], "policy.keys[0]: expected the whole path"),
        ("workloads.0.dns_names", ["10.0.0.1"], "workloads[0].dns_names[0]: expected a DNS name"),
        ("authority.addresses", ["0.0.0.0:1"], "nobody can be called at the authority's address"),
        ("sockets", {"group": "a\0b"}, "sockets.group: there is no group"),
        ("metrics", {"listen": "unix:{f}/empty"}, "metrics.listen: {f}/empty exists and is not a"),
        (
            "health",
            {"listen": "0.0.0.0:9464"},
            "health.listen: 0.0.0.0:9464 is the address of metr",
        ),
        ("workloads.0.generic_secrets", {"x": "/none"}, "workloads[0].generic_secrets.x"),
        ("workloads.0.generic_secrets", {"x": "{f}/root.pem"}, "workloads[0].generic_secrets.x"),
        ("workloads.0.generic_secrets", {"inbound": "/none"}, "workloads[0].generic_secrets"),
        ("sockets", {"group": "no-such-group"}, "sockets.group"),
        ("secret_names", {"svid": ["a"], "bundle": ["a"]}, "secret_names"),
        ("federation.bundles.0.trust_domain", "example.org", "our own trust domain example.org"),
        (
            "federation.bundles",
            [{"trust_domain": "other.test", "file": "{f}/root.pem"}] * 2,
            "federation.bundles: federation names other.test twice",
        ),
        ("federation.bundles.0.file", "{f}/none", "federation.bundles[0].file"),
        ("federation.bundles.0.file", "{f}/broken.pem", "federation.bundles[0].file"),
        ("health", {"listen": "127.0.0.1:9464"}, "health.listen"),
        ("health", {"listen": "127.0.0.1"}, "health"),
        ("metrics", {"listen": "0.0.0.0:9464"}, "`remote: true` permits it"),
        ("federation.serve", {"listen": "0.0.0.0:8080"}, "put an Envoy with TLS in front of it"),
        (
            "federation.bundles.0",
            {"trust_domain": "other.test", "endpoint": "http://other.test/b"},
            "bundle endpoint: 'http://other.test/b' is not a usable URL: it does not begin with",
        ),
        ("metrics", {"listen": "unix:/no/such/place/m.sock"}, "metrics.listen"),
        ("node", {"attestors": ["kubernetes"]}, "node.kubernetes.kubelet"),
        (
            "node",
            {
                "attestors": ["kubernetes"],
                "kubernetes": {
                    "kubelet": {"url": "https://127.0.0.1:1", "ca_file": "{f}/none"},
                    "services": False,
                },
            },
            "node.kubernetes.kubelet.ca_file: {f}/none cannot be read",
        ),
        (
            "authority",
            {"kind": "istio", "addresses": ["a:1"], "root": "{f}/none", "token": "{f}/empty"},
            "attestation: an authority of the kind istio takes no evidence",
        ),
    ],
)
def test_what_cannot_start_is_refused(
    settings: dict[str, Any], tmp_path: Path, at: str, value: Any, said: str
) -> None:
    filled = yaml.safe_load(yaml.safe_dump(value).replace("{f}", str(tmp_path)))
    with pytest.raises(ConfigurationError) as caught:
        check(changed(settings, at, filled), tmp_path)
    assert said.replace("{f}", str(tmp_path)) in str(caught.value)
    found = [one.partition(": ")[2] for one in str(caught.value).split("; ")]
    assert len(set(found)) == len(found), "one problem is told twice"


def test_the_kubelets_directories_must_be_there_for_its_volumes(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """The kubelet makes them; a driver that registers elsewhere never gets a call."""
    kubelet = tmp_path / "kubelet"
    csi = {"driver": "csi.test", "kubelet_dir": str(kubelet)}
    node = {"attestors": ["cri"], "csi": csi}
    for missing in ("plugins_registry", "pods"):
        with pytest.raises(
            ConfigurationError,
            match=f"node.csi.kubelet_dir: {kubelet}/{missing} is not a directory",
        ):
            check({**settings, "node": node}, tmp_path)
        (kubelet / missing).mkdir(parents=True)
    check({**settings, "node": node}, tmp_path)
    assert not (kubelet / "plugins").exists()
    (kubelet / "plugins").touch()
    with pytest.raises(ConfigurationError, match=f"kubelet_dir: {kubelet}/plugins is not a dir"):
        check({**settings, "node": node}, tmp_path)


def test_a_token_that_istios_client_would_refuse_is_refused(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    del settings["attestation"]
    istio = {"kind": "istio", "addresses": ["a:1"], "root": str(tmp_path / "root.pem")}
    istio["token"] = str(tmp_path / "two")
    with pytest.raises(ConfigurationError, match=r"token: .*/two must contain one token"):
        check({**settings, "authority": istio}, tmp_path)


def test_the_agent_must_be_a_member_of_the_sockets_group(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = grp.getgrgid(os.getegid()).gr_name
    check({**settings, "sockets": {"group": own}}, tmp_path)

    def refuse(*_: int) -> None:  # root may give files to every group
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchown", refuse)
    with pytest.raises(ConfigurationError, match=f"is not in the group '{own}', so it may not"):
        check({**settings, "sockets": {"group": own}}, tmp_path)


def test_a_rule_that_no_attestor_can_answer(settings: dict[str, Any], tmp_path: Path) -> None:
    bad = {**settings, "node": {"attestors": ["unix"]}, "workloads": [RULE]}
    with pytest.raises(ConfigurationError, match=r"workloads\[0\].match: k8s:ns is found by"):
        check(bad, tmp_path)


def test_all_problems_are_said_at_once(settings: dict[str, Any], tmp_path: Path) -> None:
    bad = changed(settings, "authority.addresses", ["nowhere"])
    bad = changed(bad, "policy.file", str(tmp_path / "none"))
    bad = changed(bad, "attestation", {})
    with pytest.raises(ConfigurationError) as caught:
        check(bad, tmp_path)
    for said in ("authority.addresses[0]", "policy", "attestation.kind"):
        assert said in str(caught.value)


RULE = {"name": "pods", "match": {"k8s:ns": "shop"}, "spiffe_id": "spiffe://example.org/shop"}


@pytest.mark.parametrize(
    ("kind", "names", "services", "said"),
    [
        ("simulated", None, True, ["put no names of Services into certificates"]),
        ("simulated", ["*.shop.svc"], True, ["on the word of the API server"]),
        ("simulated", ["web.shop.svc"], True, []),
        ("simulated", None, False, []),
        ("kubernetes-token", None, True, []),
    ],
)
def test_a_guest_says_what_becomes_of_names_of_services(
    settings: dict[str, Any], kind: str, names: list[str] | None, *, services: bool, said: list[str]
) -> None:
    rule = RULE if names is None else {**RULE, "service_dns_names": names}
    made = {
        **settings,
        "attestation": {"kind": kind} | ({"descriptor": 3} if kind == "simulated" else {}),
        "node": {"attestors": ["kubernetes"], "kubernetes": {"services": services}},
        "workloads": [rule],
    }
    config = AgentConfig.model_validate(made)
    told = [line for line in warnings(config) if "Services" in line or "API server" in line]
    assert len(told) == len(said), told
    assert all(words in line for words, line in zip(said, told, strict=True))
    expected = () if config.attestation.is_guest else NAMES_IN_NAMESPACE
    assert config.rules.defaults.service_dns_names == expected


@pytest.mark.parametrize(
    ("values", "any_machine"),
    [
        ({}, True),
        ({"snp": {"products": ["milan"]}}, True),
        ({"tdx": {"fmspcs": ["00" * 6]}}, True),
        ({"measurements": ["ab" * 48]}, False),
        ({"snp": {"chip_ids": ["ab" * 64]}}, False),
        ({"tdx": {"rtmr2": ["ab" * 48]}}, False),
        ({"others": {"tpm": {"pcrs": {"11": ["ab" * 32]}}}}, False),
    ],
)
def test_an_agent_that_takes_every_machine_for_its_authority_says_so(
    settings: dict[str, Any], values: dict[str, Any], *, any_machine: bool
) -> None:
    made = {
        **settings,
        "authority": {"addresses": ["127.0.0.1:8443"]},
        "verification": {"reference_values": values},
    }
    told = "every machine with genuine evidence can pose as the authority"
    assert not any(told in line for line in warnings(AgentConfig.model_validate(made)))
    del made["policy"]
    assert any(told in line for line in warnings(AgentConfig.model_validate(made))) is any_machine


@pytest.mark.parametrize("products", [[], ["genoa"]])
def test_products_without_a_minimum_beside_one_with_it_are_said(
    settings: dict[str, Any], products: list[str]
) -> None:
    values = {"snp": {"products": products, "minimum_tcb": {"genoa": {"snp": 20}}}}
    made = {**settings, "verification": {"reference_values": values}}
    found = warnings(AgentConfig.model_validate(made))
    told = "verification.reference_values.snp names no minimum_tcb of milan, turin"
    assert any(told in line for line in found) is (not products)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, True),
        ({"service_dns_names": []}, False),
        ({"service_dns_names": ["web.shop.svc"]}, True),
        ({"service_dns_names": [], "dns_names": ["web.test"]}, True),
    ],
)
def test_names_that_istios_authority_does_not_give_are_noticed(
    settings: dict[str, Any], changes: dict[str, Any], *, said: bool
) -> None:
    made = {
        **{name: settings[name] for name in ("trust_domain", "run_dir")},
        "authority": {"kind": "istio", "addresses": ["a:1"], "root": "/r", "token": "/t"},
        "node": {"attestors": ["kubernetes"]},
        "workloads": [{**RULE, **changes}],
    }
    found = [line for line in warnings(AgentConfig.model_validate(made)) if "Istio's" in line]
    assert len(found) == said


def test_a_wrong_kind_makes_no_field_unknown_that_the_right_one_has(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    istio = {"kind": "istiod", "addresses": ["a:1"], "root": "/r", "token": "/t"}
    with pytest.raises(ConfigurationError) as caught:
        check({**settings, "authority": istio}, tmp_path)
    assert "did you mean root" not in str(caught.value)
    assert "authority.kind: expected sds, istio" in str(caught.value)


def test_the_zeros_of_an_example_are_noticed(settings: dict[str, Any]) -> None:
    for digits, noticed in (("00", True), ("01", False)):
        values = {"reference_values": {"measurements": ["ab" * 48, digits * 48]}}
        config = AgentConfig.model_validate({**settings, "verification": values})
        assert any("zeros of an example" in line for line in warnings(config)) is noticed


def test_fields_with_one_fault_are_all_named_and_a_block_is_not_named_beside_its_field() -> None:
    checks = ConfigurationChecks("agent.yaml", now=datetime(2026, 1, 1, tzinfo=UTC))
    for field in ("authority", "authority.tls.root", "federation", "federation.bundles[0].root"):
        checks.problem(field, "/r.pem cannot be read")
    checks.problem("authority", "/r.pem cannot be read")
    with pytest.raises(ConfigurationError) as caught:
        checks.raise_all()
    assert str(caught.value) == (
        "agent.yaml: authority.tls.root: /r.pem cannot be read; "
        "federation.bundles[0].root: /r.pem cannot be read"
    )
