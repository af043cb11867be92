"""Prepares one simulated node: an authority and an agent, without configuration by the user.

Owns what the demo and ``sds dev`` share: the two processes, their configuration files (which
contain nothing secret), their simulated machines, and the paths of the two workloads' sockets.
Invariant: a simulated chip's key leaves this process only by an inherited memory descriptor.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_der_x509_certificate

from sds.agent.directory import make_directory
from sds.attestation.snp.simulated import SimulatedRoot
from sds.demo.supervisor import Part
from sds.demo.withdrawal import DemoPolicy, Mesh
from sds.errors import ConfigurationError, SocketError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sds.attestation.snp.simulated import SimulatedMachine
    from sds.clock import Clock

TRUST_DOMAIN: Final = "demo.test"
WORKLOADS: Final = ("client", "server")
NODE_MEASUREMENT: Final = b"attested-sds simulated node".ljust(48, b"\0")
AUTHORITY_MEASUREMENT: Final = b"attested-sds simulated authority".ljust(48, b"\0")
MIN_LIFETIME_SECONDS: Final = 4
"""The shortest lifetime: certificates have whole seconds, and a renewal needs some time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoNode:
    """The processes to start, and the paths of their sockets.

    Attributes:
        parts: the authority (``ca``) and the agent (``agent``).
        sockets: the SDS socket of each workload.
        spiffe_ids: the SPIFFE ID of each workload.
        admin_socket: the agent's socket for people.
        logs: the folder of the log files.
        lifetime_seconds: of the workloads' certificates.
        policy: the signed policy, if the node has one.
    """

    parts: Sequence[Part]
    sockets: Mapping[str, Path]
    spiffe_ids: Mapping[str, str]
    admin_socket: Path
    logs: Path
    lifetime_seconds: int
    policy: DemoPolicy | None = None


@contextlib.contextmanager
def simulated_node(
    run_dir: Path, *, lifetime_seconds: int, port: int, policy_clock: Clock | None = None
) -> Iterator[DemoNode]:
    """Make machines and files for a node under ``run_dir`` (absolute), but start no process.

    Args:
        run_dir: the directory; it is made if missing, and must belong to this user alone.
        lifetime_seconds: of the workloads' certificates.
        port: the loopback port of the authority.
        policy_clock: gives the node a signed policy whose window follows this clock; None for no
            policy.

    Raises:
        ConfigurationError: the lifetime is too short, or a file cannot be written.
        SocketError: the directory cannot be used.
    """
    if lifetime_seconds < MIN_LIFETIME_SECONDS:
        raise ConfigurationError(
            f"a lifetime of {lifetime_seconds} s is too short",
            advice=f"use {MIN_LIFETIME_SECONDS} s or more",
        )
    private_directory(run_dir, option="--run-dir")
    etc, logs = run_dir / "etc", run_dir / "log"
    with writing(run_dir):
        for folder in (etc, logs):
            folder.mkdir(mode=0o700, exist_ok=True)
    root = SimulatedRoot.create()
    ark = etc / "simulated-ark.pem"
    with writing(run_dir):
        ark.write_bytes(load_der_x509_certificate(root.ark_der).public_bytes(Encoding.PEM))
    names = {name: f"spiffe://{TRUST_DOMAIN}/{name}" for name in WORKLOADS}
    with (
        _memory(root.machine(measurement=AUTHORITY_MEASUREMENT)) as authority_chip,
        _memory(root.machine(measurement=NODE_MEASUREMENT)) as node_chip,
    ):
        authority = authority_configuration(
            names.values(), ark, authority_chip, port, lifetime_seconds
        )
        agent = agent_configuration(
            names,
            run_dir=run_dir,
            ark=ark,
            descriptor=node_chip,
            port=port,
            lifetime_seconds=lifetime_seconds,
        )
        policy = None
        if policy_clock is not None:
            mesh = Mesh(
                trust_domain=TRUST_DOMAIN,
                measurement=NODE_MEASUREMENT.hex(),
                spiffe_ids=names,
                lifetime_seconds=lifetime_seconds,
            )
            policy = DemoPolicy(etc / "policy.json", mesh, clock=policy_clock)
            agent["policy"] = authority["policy"] = policy.section()
            del authority["identities"]
        with writing(run_dir):
            parts = [
                _part("ca", etc / "ca.yaml", authority, authority_chip),
                _part("agent", etc / "agent.yaml", agent, node_chip),
            ]
        yield DemoNode(
            policy=policy,
            parts=parts,
            sockets={name: run_dir / "workloads" / name / "sds.sock" for name in WORKLOADS},
            spiffe_ids=names,
            admin_socket=run_dir / "admin.sock",
            logs=logs,
            lifetime_seconds=lifetime_seconds,
        )


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn failures to write into errors about a folder that a person chose.

    Raises:
        ConfigurationError: one of them cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename or folder} cannot be written: {error.strerror}",
            advice="remove what is in its place, or choose another directory",
        ) from error


def private_directory(path: Path, *, option: str) -> None:
    """Make a directory that only this user can enter, or accept such a directory.

    Args:
        path: the directory.
        option: chooses another one.

    Raises:
        SocketError: others can enter it, it is behind a symbolic link or in a directory of somebody
            else, or it cannot be made.
    """
    make_directory(path, 0o700, exact=False)
    if path.lstat().st_mode & 0o077:
        raise SocketError(
            f"the directory {path} is not this user's alone",
            advice=f"remove it, chmod it to 0700, or choose another one with {option}",
        )


def authority_configuration(
    spiffe_ids: Iterable[str], ark: Path, descriptor: int, port: int, lifetime_seconds: int
) -> dict[str, Any]:
    """Return the configuration of ``sds ca``, which signs for the simulated node."""
    return {
        "trust_domain": TRUST_DOMAIN,
        "listen": f"127.0.0.1:{port}",
        "attestation": {"kind": "simulated", "descriptor": descriptor},
        "verification": {
            "trusted_roots": [str(ark)],
            "reference_values": {"measurements": [NODE_MEASUREMENT.hex()]},
        },
        "identities": [
            {
                "measurement": NODE_MEASUREMENT.hex(),
                "spiffe_ids": list(spiffe_ids),
                "max_lifetime": f"{lifetime_seconds}s",
            }
        ],
    }


def agent_configuration(
    names: Mapping[str, str],
    *,
    run_dir: Path,
    ark: Path,
    descriptor: int,
    port: int,
    lifetime_seconds: int,
) -> dict[str, Any]:
    """Return the configuration of ``sds agent``: two workloads, each with its own socket."""
    return {
        "trust_domain": TRUST_DOMAIN,
        "run_dir": str(run_dir),
        "authority": {"addresses": [f"127.0.0.1:{port}"], "tls": "attested"},
        "attestation": {"kind": "simulated", "descriptor": descriptor},
        "verification": {
            "trusted_roots": [str(ark)],
            "reference_values": {"measurements": [AUTHORITY_MEASUREMENT.hex()]},
        },
        "workloads": [
            {"name": name, "spiffe_id": spiffe_id, "lifetime": f"{lifetime_seconds}s"}
            for name, spiffe_id in names.items()
        ],
    }


@contextlib.contextmanager
def _memory(machine: SimulatedMachine) -> Iterator[int]:
    """Make a descriptor from which child processes read the machine at every start."""
    descriptor = machine.send()
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _part(name: str, path: Path, configuration: Mapping[str, Any], descriptor: int) -> Part:
    path.write_text(yaml.safe_dump(dict(configuration), sort_keys=False))
    return Part(
        name=name,
        # -P: import nothing from the current directory, which may belong to another user.
        command=[
            *(sys.executable, "-P", "-m", "sds", name),
            *("--config", str(path), "--log-format", "json"),
        ],
        descriptors=(descriptor,),
    )
