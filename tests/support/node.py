"""A node in tests: real ``sds ca`` and ``sds agent`` processes over a simulated machine.

``Node(folder)`` writes the files; ``node.authority()`` and ``node.agent()`` run the processes,
which may be killed and started again. The authority's port is chosen once, so that a second start
has the same address. Where the authority is not what the tests of a file look at, they share one:
``Node(folder, port=port)`` for the port of :func:`lasting_authority`.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sds.pki import certificate_pem
from tests.support.machines import simulated
from tests.support.process import PATIENCE_SECONDS, STOP_SECONDS, Process, running, sds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from sds.attestation.snp.simulated import SimulatedRoot

NODE = b"test node".ljust(48, b"\0")
AUTHORITY = b"test authority".ljust(48, b"\0")
TRUST_DOMAIN = "example.org"


def chips() -> SimulatedRoot:
    """The manufacturer of all chips in tests."""
    return simulated()


def free_port() -> int:
    """A loopback port that nobody uses now, and that no outgoing connection will be given.

    The kernel gives those the ports of its own range; one of them would be taken a moment later.
    """
    given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(3 * given // 4, given)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A directory with a short name: paths of Unix sockets have 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="sds-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def enterable_folder() -> Iterator[Path]:
    """A directory that other users may enter: a second run of pytest shuts those of pytest."""
    with short_folder() as folder:
        folder.chmod(0o711)
        yield folder


@contextlib.contextmanager
def lasting_authority() -> Iterator[int]:
    """An authority that serves the agents of many tests; its port."""
    with short_folder() as folder:
        node = Node(folder)
        descriptor, path = node.machine("ca", AUTHORITY, node.authority_settings())
        log = folder / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                sds("ca", "--config", path), stdout=file, stderr=file, pass_fds=[descriptor]
            )
        os.close(descriptor)
        try:
            until = time.monotonic() + PATIENCE_SECONDS
            while "READY" not in (said := log.read_text()):
                assert process.poll() is None, said
                assert time.monotonic() < until, said
                time.sleep(0.05)
            yield node.port
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            finally:
                process.kill()


class Node:
    """Files of one authority and one agent under ``folder``."""

    def __init__(
        self,
        folder: Path,
        *,
        workloads: Sequence[str] = ("web", "api"),
        lifetime: str = "1h",
        port: int | None = None,
    ) -> None:
        self.folder = folder
        self.run_dir = folder / "run"
        self.workloads = tuple(workloads)
        self.lifetime = lifetime
        self.port = free_port() if port is None else port
        self.ark = folder / "ark.pem"
        self.ark.write_bytes(certificate_pem([chips().ark_der]))

    def socket(self, workload: str) -> Path:
        return self.run_dir / "workloads" / workload / "sds.sock"

    @property
    def admin(self) -> Path:
        return self.run_dir / "admin.sock"

    def authority_settings(self, **changes: Any) -> dict[str, Any]:
        return {
            "trust_domain": TRUST_DOMAIN,
            "listen": f"127.0.0.1:{self.port}",
            "verification": {"trusted_roots": [str(self.ark)]},
            "identities": [
                {
                    "measurement": NODE.hex(),
                    "spiffe_ids": [f"spiffe://{TRUST_DOMAIN}/**"],
                    "dns_names": ["**.test"],
                }
            ],
        } | changes

    def agent_settings(self, **changes: Any) -> dict[str, Any]:
        return {
            "trust_domain": TRUST_DOMAIN,
            "run_dir": str(self.run_dir),
            "authority": {"addresses": [f"127.0.0.1:{self.port}"]},
            "verification": {
                "trusted_roots": [str(self.ark)],
                "reference_values": {"measurements": [AUTHORITY.hex()]},
            },
            "workloads": [
                {
                    "name": name,
                    "spiffe_id": f"spiffe://{TRUST_DOMAIN}/{name}",
                    "lifetime": self.lifetime,
                }
                for name in self.workloads
            ],
        } | changes

    def file(self, name: str, settings: Mapping[str, Any]) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(dict(settings), sort_keys=False))
        return path

    def machine(
        self, command: str, measurement: bytes, settings: Mapping[str, Any]
    ) -> tuple[int, Path]:
        """A simulated machine: its descriptor, and a configuration that names it."""
        descriptor = chips().machine(measurement=measurement).send()
        attestation = {"kind": "simulated", "descriptor": descriptor}
        return descriptor, self.file(command, {"attestation": attestation, **settings})

    @contextlib.asynccontextmanager
    async def authority(
        self,
        *,
        ready: bool = True,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str | Path] = (),
        **changes: Any,
    ) -> AsyncIterator[Process]:
        """A running authority; ``ready``: wait until it can sign; ``prefix``: what runs it."""
        settings = self.authority_settings(**changes)
        async with self._process("ca", AUTHORITY, settings, env=env, prefix=prefix) as process:
            if ready:
                await process.line("READY")
            yield process

    @contextlib.asynccontextmanager
    async def agent(
        self,
        *,
        ready: bool = True,
        env: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        prefix: Sequence[str | Path] = (),
        **changes: Any,
    ) -> AsyncIterator[Process]:
        """A running agent; ``ready``: wait until it serves every workload.

        ``prefix``: a program that runs it, such as strace.
        """
        settings = self.agent_settings(**changes)
        async with self._process(
            "agent", NODE, settings, env=env, more=arguments, prefix=prefix
        ) as process:
            if ready:
                await process.line(r"\bready=true")
            yield process

    @contextlib.asynccontextmanager
    async def _process(
        self,
        command: str,
        measurement: bytes,
        settings: dict[str, Any],
        *,
        env: Mapping[str, str] | None = None,
        more: Sequence[str] = (),
        prefix: Sequence[str | Path] = (),
    ) -> AsyncIterator[Process]:
        descriptor, path = self.machine(command, measurement, settings)
        try:
            async with running(
                [*prefix, *sds(command, "--config", path), *more],
                name=f"sds {command}",
                pass_fds=[descriptor],
                env=env,
            ) as process:
                yield process
        finally:
            os.close(descriptor)
