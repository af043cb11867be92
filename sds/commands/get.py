"""Runs ``sds get``, which shows what a client on this socket would receive."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click
import grpc
import yaml
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from envoy.service.discovery.v3 import discovery_pb2

from sds.commands.agent_socket import A_WORKLOADS, CHANNEL_OPTIONS, dialled, other_socket
from sds.commands.options import output
from sds.errors import SdsError, SocketError
from sds.printable import printable
from sds.serving.secret_description import describe, describe_extension, private_key, remaining
from sds.untrusted_input import reading

if TYPE_CHECKING:
    from sds.serving.secret_description import Description

_FETCH: Final = "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets"
_FETCH_EXTENSION: Final = (
    "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/FetchExtensionConfigs"
)
_EXTENSIONS: Final = ("authorization", "authorization-tcp")
_SECONDS: Final = 10.0
_NOT_RECOGNISED: Final = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.PERMISSION_DENIED)


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--socket",
    "path",
    required=True,
    metavar="PATH",
    help="The workload's Unix socket, such as RUN_DIR/workloads/NAME/sds.sock.",
)
@output("table", "json", "yaml")
@click.option(
    "--show-private-key",
    is_flag=True,
    help="Print private keys too; asks for confirmation on a terminal.",
)
def get(names: tuple[str, ...], path: str, output: str, *, show_private_key: bool) -> None:
    """Show the secrets that a client on this socket would receive, without private keys.

    Without NAMEs: every secret that the caller may have, by long names. `authorization` and
    `authorization-tcp` show what the caller's Envoy must enforce. Ends with status 1 if a NAME
    does not exist for the caller.
    """
    if show_private_key and sys.stdin.isatty():
        click.confirm("Print private keys on this terminal?", abort=True, err=True)
    shown: list[tuple[str, Description, str | None]] = []
    strange = "check that this is a workload's socket of the agent"
    with reading(f"{path}: the answer cannot be shown", SocketError, advice=strange):
        for name, version, encoded in asyncio.run(_fetch(path, names)):
            if _is_extension(name):
                shown.append((version, describe_extension(encoded), None))
            else:
                key = private_key(encoded) if show_private_key else None
                shown.append((version, describe(encoded), key))
    if output == "table":
        click.echo(_table(shown, datetime.now(UTC)))
    else:
        entries = [_entry(*one) for one in shown]
        click.echo(_text(entries, output))
    missing = [name for name in names if name not in {one.name for _, one, _ in shown}]
    if missing:
        raise SdsError(
            f"{path}: nothing under {', '.join(missing)} for this caller (yet)",
            reason="secret_absent",
            advice="`sds get` without names lists what there is",
        )
    if not shown:
        raise SdsError(
            f"{path}: the caller has no secrets (yet)",
            reason="secret_absent",
            advice="`sds status` says why",
        )


def _is_extension(name: str) -> bool:
    return name.partition(":")[0] in _EXTENSIONS


async def _fetch(path: str, names: tuple[str, ...]) -> list[tuple[str, str, bytes]]:
    """Return name, version and content of each name that exists; each call has its own version."""
    async with grpc.aio.insecure_channel(dialled(path), options=CHANNEL_OPTIONS) as channel:

        async def fetch(*wanted: str) -> Any:
            extension = bool(wanted) and _is_extension(wanted[0])
            call: Any = channel.unary_unary(
                _FETCH_EXTENSION if extension else _FETCH,
                request_serializer=discovery_pb2.DiscoveryRequest.SerializeToString,
                response_deserializer=discovery_pb2.DiscoveryResponse.FromString,
            )
            request = discovery_pb2.DiscoveryRequest(resource_names=wanted)
            request.node.id = "sds-get"
            return await call(request, timeout=_SECONDS)

        try:
            if not names:
                names = tuple(_name(resource.value) for resource in (await fetch()).resources)
            answers = [(name, await fetch(name)) for name in names]
        except grpc.aio.AioRpcError as error:
            raise _refused(path, error) from None
    return [
        (name, answer.version_info, _content(resource))
        for name, answer in answers
        for resource in answer.resources
    ]


def _refused(path: str, error: grpc.aio.AioRpcError) -> SdsError:
    """Return the error of a failed call, with what a person can do about it."""
    if error.code() in _NOT_RECOGNISED:
        return SdsError(
            f"{path}: the agent does not recognise this process (yet): {error.details()}",
            reason="no_match",
            advice=f"`sds whoami --socket {path}` tells what the agent sees, and why no rule "
            "matches",
        )
    return other_socket(path, error, wanted=A_WORKLOADS) or SocketError(
        f"{path}: {error.code().name}: {error.details()}",
        advice="check that the agent runs and that this is the workload's socket; its log "
        "says why it turned a connection away",
    )


def _content(resource: Any) -> bytes:
    """Return the message in an Any, unwrapped if it has a limited life."""
    wrapped = discovery_pb2.Resource()
    return bytes(wrapped.resource.value if resource.Unpack(wrapped) else resource.value)


def _name(encoded: bytes) -> str:
    return str(secret_pb2.Secret.FromString(encoded).name)


def _entry(version: str, secret: Description, key: str | None) -> dict[str, Any]:
    entry = {"version": version, **secret.to_json()}
    if secret.kind == "tls_certificate":
        entry["private_key"] = key if key is not None else "[redacted]"
    if secret.not_after is not None:
        entry["expires"] = remaining(secret.not_after, datetime.now(UTC))
    return entry


def _text(entries: list[dict[str, Any]], output: str) -> str:
    if output == "json":
        return json.dumps({"secrets": entries}, indent=2)
    text: str = yaml.dump({"secrets": entries}, Dumper=_Readable, sort_keys=False)
    return text.rstrip()


class _Readable(yaml.SafeDumper):
    """Writes text of several lines, such as PEM, unchanged."""


def _as_block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Readable.add_representer(str, _as_block)


def _table(shown: list[tuple[str, Description, str | None]], now: datetime) -> str:
    blocks = []
    for version, secret, key in shown:
        rows = [("secret", secret.name), ("kind", secret.kind), ("version", version)]
        rows += [("SPIFFE ID" if uri.startswith("spiffe:") else "URI", uri) for uri in secret.uris]
        rows += [("DNS name", name) for name in secret.dns_names]
        if secret.serial is not None:
            rows.append(("serial", secret.serial))
            rows.append(("chain", f"{len(secret.certificates)} certificate(s)"))
        elif secret.certificates:
            rows.append(("roots", str(len(secret.certificates))))
        rows += [
            ("trusts", f"{domain} ({count} root(s))")
            for domain, count in secret.trust_domains.items()
        ]
        rows += [("peer SAN", matcher) for matcher in secret.matchers]
        if secret.allows is not None:
            rows += [("allows", rule) for rule in secret.allows or ("nothing: all is denied",)]
            rows += [("would allow", rule) for rule in secret.counted or ()]
        if secret.keys is not None:
            rows.append(("keys", f"{secret.keys} [redacted]"))
        if secret.not_after is not None:
            when = f"{secret.not_after:%Y-%m-%d %H:%M:%S} UTC"
            rows.append(("expires", f"{remaining(secret.not_after, now)} ({when})"))
        if secret.kind == "tls_certificate":
            rows.append(("private key", "as follows" if key is not None else "[redacted]"))
        block = "\n".join(f"{title:<12} {printable(value)}" for title, value in rows)
        blocks.append(block + (f"\n{key.rstrip()}" if key is not None else ""))
    return "\n\n".join(blocks)
