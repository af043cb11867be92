"""Implements ``sds agent --check-config``: opens every file, and checks every reference.

Invariants: a configuration that passes can start, as far as this machine alone can tell; the check
does not touch the network, and binds, makes and changes nothing; it reports every problem at once,
with its field.
"""

from __future__ import annotations

import contextlib
import grp
import os
from pathlib import Path
from typing import TYPE_CHECKING

from sds.agent.build import authority_settings, signed_policy, warnings
from sds.agent.build import verification as make_verification
from sds.agent.config import OwnAuthoritySection
from sds.agent.directory import expect_trusted
from sds.attestation.build import make_attester
from sds.authority.channel import split_address
from sds.authority.registry import authority_kind
from sds.errors import ConfigurationError
from sds.federation.refresh import by_trust_domain, parse_bundle_file
from sds.operations.instruments import AgentInstruments
from sds.secrets.store import SecretStore
from sds.serving.generic_secrets import GenericSecretFiles
from sds.settings.checking import ConfigurationChecks
from sds.workload.kubernetes.settings import api_server, kubelet_server

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sds.agent.config import AgentConfig
    from sds.agent.node_settings import CsiSettings
    from sds.agent.policy import AgentPolicy
    from sds.clock import Clock
    from sds.workload.kubernetes.server import KubernetesServer


def check_configuration(
    config: AgentConfig, *, what: str, clock: Clock, environment: Mapping[str, str]
) -> tuple[str, ...]:
    """Check everything that the configuration names.

    Args:
        config: the configuration, which is valid by itself.
        what: names it in errors: the file.
        clock: gives the time at which files must be valid.
        environment: the agent's environment, which may have the addresses of Kubernetes.

    Returns:
        What an operator should not overlook, one sentence each.

    Raises:
        ConfigurationError: there are problems; the text has all of them.
    """
    checks = ConfigurationChecks(what, now=clock.now().wall)
    checks.writable_directory("run_dir", config.run_dir)
    with checks.of("run_dir"):
        _check_owner(config.run_dir)
    _check_authority(config, checks, clock)
    _check_evidence(config, checks, environment)
    policy = _check_policy(config, checks, clock)
    copy = config.policy_copy
    if copy is not None and not copy.absolute().is_relative_to(config.run_dir.absolute()):
        checks.replaceable_file("policy_copy", copy)  # the start makes the run directory
    _check_workloads(config, checks)
    if config.node is not None and "kubernetes" in config.node.attestors:
        kubernetes = config.node.kubernetes
        with checks.of("node.kubernetes.kubelet"):
            kubelet = kubelet_server(kubernetes.kubelet, environment)
            _check_server(kubelet, checks, "node.kubernetes.kubelet")
        if kubernetes.services:
            with checks.of("node.kubernetes.api"):
                api = api_server(kubernetes.api, environment)
                _check_server(api, checks, "node.kubernetes.api")
    if config.node is not None and config.node.csi is not None:
        _check_csi(config.node.csi, checks)
    with checks.of("federation.bundles"):
        by_trust_domain(config.federation.sources(), own=config.trust_domain)
    for index, bundle in enumerate(config.federation.bundles):
        field = f"federation.bundles[{index}]"
        if bundle.file is not None:
            with checks.of(f"{field}.file"):
                parse_bundle_file(bundle.file)
        if bundle.root is not None:
            checks.roots(f"{field}.root", bundle.root)
    serve = config.federation.serve
    checks.listeners(
        {
            "metrics.listen": None if config.metrics is None else config.metrics.address(),
            "status_page.listen": None
            if config.status_page is None
            else config.status_page.address(),
            "health.listen": None if config.health is None else config.health.address(),
            "federation.serve.listen": None if serve is None else serve.address(),
        }
    )
    checks.raise_all()
    return warnings(config, policy)


def _check_csi(csi: CsiSettings, checks: ConfigurationChecks) -> None:
    field, kubelet = "node.csi.kubelet_dir", Path(csi.kubelet_dir)
    checks.writable_directory(field, kubelet / "plugins" / csi.driver)
    for made_by_kubelet in ("plugins_registry", "pods"):
        checks.existing_directory(field, kubelet / made_by_kubelet)


def _check_owner(run_dir: Path) -> None:
    """Check that the agent may use the directory, if this process has the agent's user."""
    with contextlib.suppress(FileNotFoundError):
        if os.geteuid() == 0 and run_dir.lstat().st_uid != 0:
            return  # root looks at the files of the agent's user
    expect_trusted(run_dir, 0o700)


def _check_authority(config: AgentConfig, checks: ConfigurationChecks, clock: Clock) -> None:
    section = config.authority
    for index, address in enumerate(section.addresses):
        with checks.of(f"authority.addresses[{index}]"):
            split_address(address)
    if not isinstance(section, OwnAuthoritySection):
        authority_kind(section.kind).check(section, checks.problem)
        return
    with checks.of("authority"):
        authority_settings(config, section)
    if section.tls != "attested":
        checks.roots("authority.tls.root", section.tls.root)
    with checks.of("verification"):
        make_verification(config, clock=clock)
    if config.verification.fills is not None:
        checks.writable_directory("verification.collateral", config.verification.fills)


def _check_evidence(
    config: AgentConfig, checks: ConfigurationChecks, environment: Mapping[str, str]
) -> None:
    if not isinstance(config.authority, OwnAuthoritySection):
        return
    section = config.attestation
    if section.kind is None:
        checks.problem(
            "attestation.kind",
            "it is missing, and our own authority certifies only agents that give evidence",
        )
    elif section.kind == "simulated":
        # A real start passes the machine in a descriptor, so its content cannot be checked here.
        if section.descriptor is None:
            with checks.of("attestation"):
                make_attester(section)
    elif section.kind == "kubernetes-token":
        if section.projected_token is not None:
            checks.token("attestation.projected_token", section.projected_token)
        else:
            with checks.of("attestation.api"):
                _check_server(api_server(section.api, environment), checks, "attestation.api")
    else:
        with checks.of("attestation.kind"):
            make_attester(section)


def _check_policy(
    config: AgentConfig, checks: ConfigurationChecks, clock: Clock
) -> AgentPolicy | None:
    if config.policy is None:
        return None
    policy = None
    with checks.of("policy"):
        policy = signed_policy(config, clock=clock, instruments=AgentInstruments(clock=clock))
        assert policy is not None
        if policy.holder.last_error is not None:
            raise ConfigurationError(f"{config.policy.place}: {policy.holder.last_error}")
        policy.holder.in_force()
    return policy


def _check_workloads(config: AgentConfig, checks: ConfigurationChecks) -> None:
    with checks.of("secret_names"):
        aliases = config.secret_names.aliases()
        store = SecretStore()
        for index, workload in enumerate(config.workloads):
            files = getattr(workload, "generic_secrets", None) or {}
            for name, path in files.items():
                with checks.of(f"workloads[{index}].generic_secrets.{name}"):
                    GenericSecretFiles(store, files={workload.name: {name: path}}, aliases=aliases)
    group = config.sockets.group
    if group is not None:
        try:
            number = grp.getgrnam(group).gr_gid
        except (KeyError, ValueError):  # ValueError: a NUL
            checks.problem("sockets.group", f"there is no group {group!r} on this machine")
        else:
            _check_group(number, group, checks)


def _check_group(number: int, name: str, checks: ConfigurationChecks) -> None:
    """Check, by a file in memory, that this user may give its files to the group."""
    descriptor = os.memfd_create("group")
    try:
        os.fchown(descriptor, -1, number)
    except OSError:
        checks.problem(
            "sockets.group",
            f"the user {os.geteuid()} is not in the group {name!r}, so it may not give it sockets: "
            "add it (a systemd unit of root: SupplementaryGroups=)",
        )
    finally:
        os.close(descriptor)


def _check_server(server: KubernetesServer, checks: ConfigurationChecks, field: str) -> None:
    roots = None if server.insecure_skip_verify else server.ca_file
    checks.kubernetes_server(field, roots=roots, token=server.token_file)
