"""Runs ``sds bootstrap``, which prints an Envoy bootstrap for a socket of the agent.

Owns the command line only; :mod:`sds.bootstrap` decides what a bootstrap contains.
"""

from __future__ import annotations

import enum
import ipaddress
import itertools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sds.bootstrap.build import make_bootstrap
from sds.bootstrap.commented_yaml import to_dict, to_yaml
from sds.bootstrap.plan import Endpoint, Inbound, Outbound, Protocol, SecretSource
from sds.commands.options import output as output_option
from sds.commands.options import written
from sds.errors import ConfigurationError
from sds.files import SOCKET_PATH_BYTES
from sds.rules.duration import parse_duration
from sds.settings.paths import is_url, waits_for_a_shell

if TYPE_CHECKING:
    from datetime import timedelta

AUTHORIZATION = "authorization"
"""The name by which the agent serves the filter."""
ROOTCA = "ROOTCA"
INBOUND = "inbound"


def _duration(context: click.Context, parameter: click.Parameter, value: str) -> timedelta:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error


def _name(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not (value and value.isprintable()):
        raise click.BadParameter(f"{value!r} is not a name", context, parameter)
    return value


def _endpoint(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> Endpoint | None:
    if value is None or (parameter.name == "admin" and value == "none"):
        return None
    try:
        made = Endpoint.parse(value)
    except ConfigurationError as error:
        raise click.BadParameter(str(error), context, parameter) from error
    if parameter.name == "application" and made.port == 0:
        raise click.BadParameter("port 0 cannot be connected to", context, parameter)
    return made


class EnvoyRole(enum.StrEnum):
    """Which listeners the Envoy has: inbound, outbound or both."""

    SERVER = "server"
    CLIENT = "client"
    SIDECAR = "sidecar"
    GATEWAY = "gateway"


_DOMAIN = re.compile(r"\*|\*?[A-Za-z0-9._-]+(?::[0-9]{1,5})?\*?", re.ASCII)
_INBOUND = frozenset({EnvoyRole.SERVER, EnvoyRole.SIDECAR})
_OUTBOUND = frozenset({EnvoyRole.CLIENT, EnvoyRole.SIDECAR, EnvoyRole.GATEWAY})
_OF_INBOUND = ("inbound", "application", "tcp", "no_authorization", "longest_connection")
_OF_OUTBOUND = ("outbound", "full_handshakes")


@click.command("bootstrap")
@click.option(
    "--socket", required=True, callback=_name, help="The workload's SDS socket (…/sds.sock)."
)
@click.option(
    "--role",
    type=click.Choice([role.value for role in EnvoyRole]),
    default=EnvoyRole.SIDECAR.value,
    show_default=True,
    help="server: mTLS in; client: mTLS out; sidecar: both; gateway: mTLS out, by domain.",
)
@click.option(
    "--inbound",
    default="127.0.0.1:8443",
    callback=_endpoint,
    show_default=True,
    help="Where the mTLS listener of a server or sidecar listens.",
)
@click.option(
    "--application",
    callback=_endpoint,
    help="The application of a server or sidecar, to which requests go. Without it, Envoy answers "
    "them itself and names the peer that it saw.",
)
@click.option(
    "--outbound",
    default="127.0.0.1:8081",
    callback=_endpoint,
    show_default=True,
    help="Where a client, sidecar or gateway takes plain HTTP.",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="[DOMAIN=]HOST:PORT",
    help="The mTLS server to which requests go; with a domain, only requests to that domain. A "
    "gateway may have several.",
)
@click.option(
    "--admin",
    default="127.0.0.1:9901",
    callback=_endpoint,
    show_default=True,
    help="Where Envoy's admin interface listens: a loopback address, or 'none'.",
)
@click.option("--node", callback=_name, help="Envoy's node id.  [default: the role]")
@click.option(
    "--protocol",
    type=click.Choice([protocol.value for protocol in Protocol]),
    default=Protocol.SOTW.value,
    show_default=True,
    help="Variant of xDS: state of the world, delta, or aggregated streams of either.",
)
@click.option(
    "--certificate",
    default="default",
    show_default=True,
    callback=_name,
    help="Name of the secret with the certificate and key.",
)
@click.option(
    "--validation",
    callback=_name,
    help="Name of the secret with which Envoy verifies peers.  [default: ROOTCA, and inbound for "
    "the clients of a TCP listener that asks the policy]",
)
@click.option(
    "--tcp", is_flag=True, help="The application of a server or sidecar does not speak HTTP."
)
@click.option(
    "--no-authorization",
    is_flag=True,
    help="Leave out the filter that asks the signed policy about every inbound request. Without a "
    "policy that filter denies everything.",
)
@click.option(
    "--longest",
    callback=_duration,
    default="1h",
    show_default=True,
    help="How long a stream or TCP connection may run; then the client must open a new one.",
)
@click.option(
    "--longest-connection",
    callback=_duration,
    default="30m",
    show_default=True,
    help="How long a server's HTTP connection takes requests before the client must make a new "
    "one, with a full handshake. Keep it shorter than the life of certificates: a connection that "
    "stays open can outlive the certificates of its handshake.",
)
@click.option(
    "--full-handshakes", is_flag=True, help="Outbound connections never resume a TLS session."
)
@output_option("yaml", "json")
def bootstrap(
    *,
    socket: str,
    role: str,
    inbound: Endpoint,
    application: Endpoint | None,
    outbound: Endpoint,
    peers: tuple[str, ...],
    admin: Endpoint | None,
    node: str | None,
    protocol: str,
    certificate: str,
    validation: str | None,
    tcp: bool,
    no_authorization: bool,
    longest: timedelta,
    longest_connection: timedelta,
    full_handshakes: bool,
    output: str,
) -> None:
    """Print a complete Envoy bootstrap that takes its secrets from SOCKET.

    Start it with `envoy --disable-hot-restart -c FILE`. Two Envoys on one machine need different
    --admin addresses.
    """
    does = EnvoyRole(role)
    _require_effect(does, tcp=tcp)
    _require_places(does, admin=admin, inbound=inbound, outbound=outbound, application=application)
    targets = _targets(does, peers)
    made = make_bootstrap(
        node=node or role,
        secrets=SecretSource(
            socket=_socket(socket),
            protocol=Protocol(protocol),
            certificate=certificate,
            validation=validation or ROOTCA,
        ),
        admin=admin,
        inbound=[
            Inbound(
                listen=inbound,
                upstream=application,
                tcp=tcp,
                authorization=None if no_authorization else AUTHORIZATION,
                # Envoy connects a TCP client to the application before the filter decides, at its
                # first byte, so the handshake must refuse clients that may not connect.
                validation=INBOUND if tcp and not (validation or no_authorization) else None,
                longest=longest,
                connection=longest_connection,
            )
        ]
        if does in _INBOUND
        else [],
        outbound=[
            Outbound(
                listen=outbound,
                upstreams=targets,
                full_handshakes=full_handshakes,
                longest=longest,
            )
        ]
        if does in _OUTBOUND
        else [],
    )
    text = to_yaml(made) if output == "yaml" else json.dumps(to_dict(made), indent=2) + "\n"
    click.echo(text, nl=False)


def _require_effect(role: EnvoyRole, *, tcp: bool) -> None:
    """Refuse an option on the command line that would change nothing.

    Raises:
        ConfigurationError: such an option is present.
    """
    for options, roles in ((_OF_INBOUND, _INBOUND), (_OF_OUTBOUND, _OUTBOUND)):
        for name in options if role not in roles else ():
            if written(name):
                raise ConfigurationError(
                    f"a {role} has no --{name.replace('_', '-')}",
                    advice="use --role sidecar for both",
                )
    if tcp and written("longest_connection"):
        raise ConfigurationError(
            "--longest-connection is for HTTP only", advice="--longest bounds a TCP connection"
        )


def _require_places(
    role: EnvoyRole,
    *,
    admin: Endpoint | None,
    inbound: Endpoint,
    outbound: Endpoint,
    application: Endpoint | None,
) -> None:
    """Check that no listeners share an address and that only this machine reaches the admin one.

    Raises:
        ConfigurationError: two listeners share an address, or others can reach the admin interface.
    """
    places = {
        "--admin": admin,
        "--inbound": inbound if role in _INBOUND else None,
        "--outbound": outbound if role in _OUTBOUND else None,
        "--application": application,
    }
    for (other, taken), (option, place) in itertools.combinations(places.items(), 2):
        if taken is not None and place is not None and place.meets(taken):
            raise ConfigurationError(
                f"{option} {place} is the address of {other} too", advice="choose another"
            )
    if admin is not None and not (
        admin.is_address and ipaddress.ip_address(admin.host).is_loopback
    ):
        raise ConfigurationError(
            f"--admin {admin} is not a loopback address",
            advice="anyone who reaches the admin interface controls this Envoy: use 127.0.0.1, or "
            "'none'",
        )


def _socket(text: str) -> Path:
    """Return the socket's absolute path, because Envoy resolves a relative one differently."""
    if waits_for_a_shell(text) or is_url(text):
        raise ConfigurationError(
            f"--socket {text} is not the path of a socket",
            advice="write the whole path, without unix:; the shell did not replace ~ or $NAME",
        )
    path = Path(text).absolute()
    if len(bytes(path)) > SOCKET_PATH_BYTES:
        raise ConfigurationError(
            f"socket path {path} is longer than {SOCKET_PATH_BYTES} bytes",
            advice="choose a run directory with a shorter path",
        )
    return path


def _targets(role: EnvoyRole, peers: tuple[str, ...]) -> dict[str, Endpoint]:
    """Return the peer of each domain; a peer without a domain has ``*``."""
    if role in _OUTBOUND and not peers:
        raise ConfigurationError(
            f"a {role} needs --peer: where its mTLS requests go",
            advice="--peer 127.0.0.1:8443, say",
        )
    if role not in _OUTBOUND and peers:
        raise ConfigurationError(f"a {role} has no --peer", advice="use --role sidecar for both")
    targets: dict[str, Endpoint] = {}
    for peer in peers:
        domain, _, address = peer.rpartition("=")
        if role is EnvoyRole.GATEWAY and not domain:
            raise ConfigurationError(
                f"--peer {peer} of a gateway names no domain",
                advice=f"write --peer orders.example={address}, or '*={address}' for any",
            )
        if domain and not _DOMAIN.fullmatch(domain):
            raise ConfigurationError(
                f"--peer {peer}: {domain!r} is not a domain",
                advice="write a DNS name, one with a star at its start or end, or '*'",
            )
        domain = domain.lower() or "*"  # Envoy compares them so
        if domain in targets:
            raise ConfigurationError(f"--peer names {domain} twice")
        try:
            targets[domain] = Endpoint.parse(address)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"--peer {peer}: {error.message}", advice=error.advice
            ) from error
        if targets[domain].port == 0:
            raise ConfigurationError(
                f"--peer {peer}: port 0 cannot be connected to", advice="write the server's port"
            )
    return targets
