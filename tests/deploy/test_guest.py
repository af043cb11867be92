"""deploy/guest: units, mounts, configuration and recipe of the measured image."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import tomllib
from typing import TYPE_CHECKING

import pytest
import yaml

from sds.admission.node_check import check_node
from sds.admission.settings import AdmissionConfig
from sds.agent.config import AgentConfig
from sds.agent.csi import csi_driver
from sds.clock import SystemClock
from sds.settings import yamlfile
from tests.conformance.test_manifests import build, wrong
from tests.support import need
from tests.support.front_door import front_door, rules, unix
from tests.support.node import short_folder
from tests.support.process import output

if TYPE_CHECKING:
    from pathlib import Path

GUEST = need.ROOT / "deploy" / "guest"
SYSTEM = GUEST / "mkosi.extra" / "etc" / "systemd" / "system"
UNITS = sorted([*SYSTEM.glob("*.service"), *SYSTEM.glob("*.mount")])
DISK = sorted([*(GUEST / "disk").glob("*.service"), *(GUEST / "disk").glob("*.mount")])
RELOADED = sorted(
    [*SYSTEM.glob("attested-sds-[ac]*.service"), *(need.ROOT / "deploy/systemd").glob("*.service")]
)
SERVICES = ("containerd", "kubelet")
# Known to systemd 254 and later, which the image has.
NEW_KEYS = ("FileDescriptorStorePreserve",)


def unit(path: Path) -> dict[str, list[str]]:
    """``Section.Key`` and its values, in order (systemd.syntax(7)); continued lines are joined."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in path.read_text().replace("\\\n", " ").splitlines():
        if not line or line.startswith(("#", ";")):
            continue
        if line.startswith("["):
            section = line.strip("[]")
            continue
        key, equals, value = line.partition("=")
        assert equals, f"{path.name}: {line}"
        found.setdefault(f"{section}.{key}", []).append(value)
    return found


def words(of: dict[str, list[str]], key: str) -> set[str]:
    return {word for value in of.get(key, []) for word in value.split()}


@pytest.mark.parametrize("name", ["attested-sds-agent", "attested-sds-ca"])
def test_a_program_of_the_image_takes_nothing_from_outside_of_it(name: str) -> None:
    service = unit(SYSTEM / f"{name}.service")
    loaders = {"EnvironmentFile", "LoadCredential", "LoadCredentialEncrypted", "ImportCredential"}
    assert not {key for key in service if key.partition(".")[2] in loaders | {"SetCredential"}}
    (command,) = service["Service.ExecStart"]
    assert command.startswith("/opt/sds/bin/sds ")
    assert "--config /etc/attested-sds/" in command
    before = service.pop("Service.ExecStartPre", [])
    assert all(each.startswith("/usr/bin/mkdir -p -m 0750 /var/lib/") for each in before)
    assert not [key for key in service if key.startswith("Service.ExecStartP")]
    # The exchange key outlives the process and has no file.
    assert service["Service.FileDescriptorStoreMax"] == ["1"]
    assert service["Service.FileDescriptorStorePreserve"] == ["yes"]
    assert service["Service.NotifyAccess"] == ["main"]
    assert service["Service.Restart"] == ["always"]


@pytest.mark.parametrize("name", ["attested-sds-agent", "attested-sds-ca"])
def test_it_is_as_hardened_as_the_unit_for_ordinary_hosts(name: str) -> None:
    """What a guest needs more is named here: a power that nobody listed fails."""
    guest = unit(SYSTEM / f"{name}.service")
    plain = unit(need.ROOT / "deploy" / "systemd" / f"{name}.service")
    needed = {
        # Root owns the interfaces; Restart=always; the start; directories that pods have mounted.
        "Service.User", "Service.Group", "Service.Restart", "Service.TimeoutStartSec",
        "Service.ExecStart", "Service.ExecStartPre", "Service.RuntimeDirectoryPreserve",
        "Service.StateDirectory", "Service.StateDirectoryMode", "Service.UMask",
        "Service.CapabilityBoundingSet",
    }  # fmt: skip
    for key, values in plain.items():
        if key.startswith("Service.") and key not in needed:
            assert guest.get(key) == values, key
    powers = words(guest, "Service.CapabilityBoundingSet")
    assert powers == ({"CAP_SYS_PTRACE"} if name.endswith("agent") else set())
    writable = words(guest, "Service.ReadWritePaths")
    kubelet = {"/var/lib/kubelet"} if name.endswith("agent") else set()
    assert writable == kubelet | {
        "-/sys/kernel/config/tsm/report",
        "-/sys/devices/virtual/misc/tdx_guest/measurements",
    }
    assert words(guest, "Service.DeviceAllow") - {"rw"} == {
        "/dev/sev-guest",
        "/dev/tdx_guest",
        "/dev/tpmrm0",
    }


def test_no_check_keeps_a_program_from_starting() -> None:
    """``--check-config`` refuses more than a start does: an agent whose policy on disk has expired
    starts, and learns the one in force from its authority.
    """
    checks = [
        command
        for path in (need.ROOT / "deploy").rglob("*.service")
        for command in unit(path).get("Service.ExecStartPre", [])
        if "--check-config" in command
    ]
    assert checks
    assert all(command.startswith("-") for command in checks)


@pytest.mark.parametrize("name", ["attested-sds-agent", "attested-sds-ca"])
def test_on_a_host_the_interface_for_evidence_can_be_used(name: str, tmp_path: Path) -> None:
    """configfs-tsm is root's (0755, and its write-only attributes 0200): no other user gets in."""
    folder = need.ROOT / "deploy" / "systemd"
    plain, guest = (unit(at / f"{name}.service") for at in (folder, SYSTEM))
    more = unit(folder / "confidential-guest.conf")
    assert more["Service.User"] == more["Service.Group"] == ["root"]
    assert words(more, "Service.ReadWritePaths") < words(guest, "Service.ReadWritePaths")
    assert words(more, "Unit.After") <= words(guest, "Unit.After")
    for key in ("Service.DeviceAllow", "Service.DevicePolicy", "Service.NoNewPrivileges"):
        assert plain[key] == guest[key]
    assert not words(plain, "Service.CapabilityBoundingSet"), "root without its powers"
    assert words(plain, "Service.StateDirectory")
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        return
    text = (folder / f"{name}.service").read_text().replace("/opt/sds/bin/sds", "/bin/true")
    (tmp_path / f"{name}.service").write_text(text)
    (tmp_path / f"{name}.service.d").mkdir()
    drop_in = tmp_path / f"{name}.service.d" / "confidential-guest.conf"
    drop_in.write_text((folder / "confidential-guest.conf").read_text())
    said = subprocess.run(
        [analyze, "verify", "--man=no", str(tmp_path / f"{name}.service")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    assert str(tmp_path) not in said.stderr, said.stderr


def test_containers_start_after_the_agent_and_on_measured_storage() -> None:
    agent = unit(SYSTEM / "attested-sds-agent.service")
    assert words(agent, "Unit.Before") >= {f"{one}.service" for one in SERVICES}
    wait = unit(SYSTEM / "attested-sds-wait@.service")
    assert words(wait, "Unit.Wants") == {"attested-sds-%i.service"}
    # What required it would end or restart with it: systemd.unit(5), Requires.
    assert not {"Unit.Requires", "Unit.BindsTo", "Unit.PartOf"} & wait.keys()
    assert "is-active --quiet attested-sds-%i.service" in wait["Service.ExecStart"][0]
    for one in SERVICES:
        drop_in = unit(SYSTEM / f"{one}.service.d" / "10-attested-sds.conf")
        needed = {"attested-sds-wait@agent.service", "attested-sds-wait@ca.service"}
        if one == "kubelet":
            needed.add("attested-sds-wait@admission.service")
        assert words(drop_in, "Unit.Requires") == needed
        assert words(drop_in, "Unit.After") == needed
        assert words(drop_in, "Unit.RequiresMountsFor") == {f"/var/lib/{one}"}
        memory, disk = (
            unit(folder / f"var-lib-{one}.mount") for folder in (SYSTEM, GUEST / "disk")
        )
        assert memory["Mount.Type"] == memory["Mount.What"] == ["tmpfs"]
        for mount in (memory, disk):
            assert mount["Mount.Where"] == [f"/var/lib/{one}"]
            assert words(mount, "Unit.Before") == {f"{one}.service"}
            assert words(mount, "Install.RequiredBy") == {f"{one}.service"}
        assert words(disk, "Unit.Requires") == {"attested-sds-storage.service"}
        assert words(disk, "Unit.After") == {"attested-sds-storage.service"}


def test_no_boot_is_a_first_one() -> None:
    """A first boot enables units by presets, and starts a wizard on the host's console."""
    script = (GUEST / "mkosi.postinst.chroot").read_text()
    assert ": > /etc/machine-id\n" in script
    assert "> /etc/machine-id" not in script.replace(": > /etc/machine-id", "")


def test_what_the_storage_mounts_is_seen_by_all() -> None:
    """A service with a view of the file system of its own mounts in that view alone."""
    storage = unit(GUEST / "disk" / "attested-sds-storage.service")
    views = (
        *("Private", "Protect", "ReadWrite", "ReadOnly", "Inaccessible", "Bind", "Temporary"),
        *("Root", "Mount", "Dynamic", "State", "LoadCredential", "ImportCredential"),
    )
    found = [key for key in storage if key.removeprefix("Service.").startswith(views)]
    assert found == []


def test_later_policies_reach_admission() -> None:
    folder = GUEST / "mkosi.extra" / "etc" / "attested-sds"
    agent = yamlfile.load_file(folder / "agent.yaml", AgentConfig)
    admission = yamlfile.load_file(folder / "admission.yaml", AdmissionConfig)
    assert agent.policy_copy is not None
    assert str(agent.policy_copy) == admission.policy_copy
    assert agent.policy_copy.parent == agent.run_dir


def test_the_drivers_are_there_before_their_files_are_made_writable() -> None:
    """A path that does not exist when the unit starts stays read-only for as long as it runs."""
    for name in ("agent", "ca"):
        service = unit(SYSTEM / f"attested-sds-{name}.service")
        for key in ("Unit.Wants", "Unit.After"):
            assert words(service, key) >= {
                "modprobe@tdx_guest.service",
                "modprobe@sev_guest.service",
            }


def test_the_guest_gets_an_address_and_leaves_pods_theirs() -> None:
    (match,) = unit(GUEST / "mkosi.extra/etc/systemd/network/80-guest.network")["Match.Name"]
    assert match.split() == ["en*", "eth*"]
    kept = unit(GUEST / "mkosi.extra/etc/systemd/networkd.conf.d/10-cni.conf")
    assert [value for values in kept.values() for value in values] == ["no", "no"]
    script = (GUEST / "mkosi.postinst.chroot").read_text()
    assert "systemd-networkd.service" in script
    settings = yaml.safe_load((GUEST / "mkosi.extra/etc/kubernetes/kubelet.yaml").read_text())
    assert settings["resolvConf"] == "/run/systemd/resolve/resolv.conf"


def test_the_disk_is_authenticated_and_its_key_is_in_no_file() -> None:
    storage = unit(GUEST / "disk" / "attested-sds-storage.service")
    assert storage["Service.ExecStart"][0].startswith("/etc/attested-sds/make-storage /dev/disk/")
    script = (GUEST / "disk" / "make-storage").read_text()
    assert "--integrity hmac-sha256" in script
    assert script.count("--key-file -") == 2
    assert "> " not in script.replace(">/dev/null", ""), "nothing is redirected into a file"


@pytest.mark.parametrize("path", RELOADED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_reload_reads_the_policy_again(path: Path) -> None:
    assert unit(path)["Service.ExecReload"] == ["/bin/kill -HUP $MAINPID"]


@pytest.mark.parametrize("folder", [SYSTEM, GUEST / "disk"])
def test_systemd_reads_the_units(folder: Path, tmp_path: Path) -> None:
    """Every key and section, by systemd itself where the machine has it; by our reader anyway."""
    paths = UNITS if folder == SYSTEM else DISK
    assert all(unit(path) for path in paths)
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        return
    for path in paths:
        # Programs of the image are not here, and nothing else about the file changes.
        text = path.read_text().replace("/opt/sds/bin/sds", "/bin/true")
        text = text.replace("/etc/attested-sds/make-storage", "/bin/true")
        text = text.replace("/usr/sbin/cryptsetup", "/bin/true")
        (tmp_path / path.name).write_text(text)
    said = subprocess.run(
        [analyze, "verify", "--man=no", *(str(tmp_path / path.name) for path in paths)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    wrong_lines = [
        line
        for line in said.stderr.splitlines()
        if str(tmp_path) in line and not any(key in line for key in NEW_KEYS)
    ]
    assert not wrong_lines, wrong_lines


def test_the_agents_configuration_asks_nobody_outside_of_the_guest(tmp_path: Path) -> None:
    file = GUEST / "mkosi.extra" / "etc" / "attested-sds" / "agent.yaml"
    config = yamlfile.load_file(file, AgentConfig)
    assert config.node is not None
    assert config.node.attestors == ("cri",)
    assert config.node.csi is not None
    assert config.attestation.exchange_key is not None
    assert config.policy is not None
    assert config.policy.min_epoch > 0
    assert not config.workloads, "rules come from the signed policy"
    for path in (config.policy.place, *config.policy.keys):
        assert str(path).startswith("/etc/attested-sds/")
    # Collateral ends sooner than an image: it is fetched, into a folder that the unit may write.
    assert config.verification.fetch is not None
    (state,) = unit(SYSTEM / "attested-sds-agent.service")["Service.StateDirectory"]
    assert config.verification.collateral is not None
    assert config.verification.collateral.is_relative_to(f"/var/lib/{state}")
    # Plain SEV-SNP: the same without the register.
    text = (
        file.read_text().replace("  exchange_key: {}\n", "").replace("kind: tdx", "kind: sev-snp")
    )
    (tmp_path / "agent.yaml").write_text(text)
    assert yamlfile.load_file(tmp_path / "agent.yaml", AgentConfig).attestation.is_guest


def test_nothing_of_the_image_leads_around_admission() -> None:
    extra = GUEST / "mkosi.extra"
    config = yamlfile.load_file(extra / "etc/attested-sds/admission.yaml", AdmissionConfig)
    assert config.enforce
    assert config.policy.min_epoch > 0
    here = config.model_copy(
        update={
            "containerd_config": extra / str(config.containerd_config).lstrip("/"),
            "kubelet_config": extra / str(config.kubelet_config).lstrip("/"),
        }
    )
    # The image's build writes the wrapper itself, by the command that the last line looks for.
    unwritten = f"wrapper: {config.wrapper} cannot be read"
    assert [found for found in check_node(here) if not found.startswith(unwritten)] == []
    containerd = tomllib.loads((extra / "etc/containerd/config.toml").read_text())
    cri = containerd["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["sandbox_image"] == config.runtime.sandbox_image
    settings = yaml.safe_load((extra / "etc/kubernetes/kubelet.yaml").read_text())
    assert settings["staticPodPath"] == ""
    assert settings["authentication"]["anonymous"] == {"enabled": False}
    assert f"> {config.wrapper}" in (GUEST / "mkosi.postinst.chroot").read_text()


def test_the_static_pod_needs_nothing_of_the_api_server() -> None:
    (file,) = (GUEST / "static-pod").iterdir()
    pod = yaml.safe_load(file.read_text())
    assert wrong(pod) == []
    spec = pod["spec"]
    # Kubernetes, "Static Pods": the spec cannot refer to ServiceAccount, ConfigMap, Secret.
    assert spec["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in spec
    assert all(set(volume) == {"name", "hostPath"} for volume in spec["volumes"])
    (container,) = spec["containers"]
    assert not container.keys() & {"env", "envFrom"}
    assert container["imagePullPolicy"] == "Never"
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts["config"]["readOnly"] is True
    assert mounts.keys() == {volume["name"] for volume in spec["volumes"]}
    # It has the unit's configuration, so it needs the folder that this fills.
    config = yamlfile.load_file(GUEST / "mkosi.extra/etc/attested-sds/agent.yaml", AgentConfig)
    assert config.verification.collateral is not None
    assert config.verification.collateral.is_relative_to(mounts["state"]["mountPath"])
    assert not mounts["state"].get("readOnly")
    assert config.node is not None
    assert config.node.csi is not None
    writable = {each["mountPath"] for each in mounts.values() if not each.get("readOnly")}
    kubelet, driver = config.node.csi.kubelet_dir, config.node.csi.driver
    assert {each for each in writable if each.startswith(kubelet)} == {
        f"{kubelet}/{each}" for each in ("pods", f"plugins/{driver}", "plugins_registry")
    }


async def test_the_agent_starts_before_the_kubelet_ever_ran(tmp_path: Path) -> None:
    """The kubelet waits for the agent, and its directory is a new file system at every boot."""
    config = yamlfile.load_file(GUEST / "mkosi.extra/etc/attested-sds/agent.yaml", AgentConfig)
    assert config.node is not None
    assert config.node.csi is not None
    with short_folder() as kubelet:
        for command in unit(SYSTEM / "attested-sds-agent.service").get("Service.ExecStartPre", []):
            here = command.replace(config.node.csi.kubelet_dir, str(kubelet))
            status, _, error = await output(here.split())
            assert status == 0, error
        settings = config.node.csi.model_copy(update={"kubelet_dir": str(kubelet)})
        async with (
            front_door(tmp_path, attestors=unix(), rules=rules({"unix:uid": "0"})) as door,
            csi_driver(settings, door.door, clock=SystemClock()),
        ):
            made = {path.name: path.stat().st_mode & 0o777 for path in kubelet.iterdir()}
        # As the kubelet makes them (0750), whatever the unit's UMask is.
        assert made == dict.fromkeys(("pods", "plugins", "plugins_registry"), 0o750)


async def test_etcd_gets_nothing_that_could_give_anybody_anything() -> None:
    objects = await build(need.ROOT / "deploy" / "overlays" / "guest")
    assert [each["kind"] for each in objects] == ["CSIDriver"]
    driver = need.ROOT / "deploy" / "components" / "csi" / "csidriver.yaml"
    assert objects == [yaml.safe_load(driver.read_text())]


@pytest.mark.parametrize(
    "script", ["build", "mkosi.postinst.chroot", "mkosi.extra/init", "disk/make-storage"]
)
def test_scripts_can_be_run(script: str) -> None:
    path = GUEST / script
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n", path], check=True)


def test_the_recipe_fixes_what_a_digest_depends_on() -> None:
    recipe = configparser.ConfigParser()
    recipe.read(GUEST / "mkosi.conf")
    assert recipe["Output"]["Format"] == "cpio"
    assert recipe["Output"]["CompressOutput"] == "no"
    assert recipe["Content"]["SourceDateEpoch"].isdigit()
    assert {"containerd", "python3", "systemd"} <= set(recipe["Content"]["Packages"].split())
    # Security updates too: mkosi takes them from today's archive, whatever --mirror says.
    sources = (GUEST / "mkosi.sandbox/etc/apt/sources.list.d/mkosi.sources").read_text()
    archives = re.findall(
        r"^URIs: \S+/(debian|debian-security)/(\d{8}T\d{6}Z)$", sources, re.MULTILINE
    )
    assert len(archives) == sources.count("\nURIs:") == sources.count("\nSigned-By: /") == 2
    assert len({date for _, date in archives}) == 1
    text = (GUEST / "build").read_text()
    assert "--require-hashes -r" in text
    # Git does not keep whole modes, and mkosi works in another folder than who calls it.
    assert 'chmod -R u=rwX,go=rX "$work/recipe"' in text
    assert 'mkosi --directory "$work/recipe"' in text
    assert not re.search(r'\bcp (-\S+ )*"\$checkout', text), "with the checkout's modes"
    assert 'out=$(cd "$out" && pwd)' in text
    assert "SOURCE_DATE_EPOCH" in text
