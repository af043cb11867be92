"""Runs ``sds whoami``, which shows how the agent on a socket recognises the calling process."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Final

import click
import grpc

from sds._proto.sds.workload.v1 import whoami_pb2
from sds.commands.agent_socket import A_WORKLOADS, CHANNEL_OPTIONS, dialled, other_socket
from sds.commands.json_output import plain
from sds.commands.options import output
from sds.errors import SocketError, WorkloadError
from sds.printable import printable

if TYPE_CHECKING:
    from sds._proto.sds.workload.v1.whoami_pb2 import DescribeResponse

_METHOD: Final = "/sds.workload.v1.Whoami/Describe"
_SECONDS: Final = 40.0  # longer than the agent keeps an unrecognised caller waiting


@click.command()
@click.option(
    "--socket",
    "path",
    required=True,
    metavar="PATH",
    help="The agent's Unix socket, such as /run/attested-sds/node/sds.sock.",
)
@output("table", "json")
def whoami(path: str, output: str) -> None:
    """Show what the agent recognises this process as, and why.

    Ends with status 1 if the agent gives it no identity.
    """
    answer = asyncio.run(_describe(path))
    if output == "json":
        click.echo(json.dumps(plain(answer), indent=2))
    else:
        click.echo(_table(answer))
    if not answer.identities:
        raise WorkloadError(answer.why, reason="no_match")


async def _describe(path: str) -> DescribeResponse:
    async with grpc.aio.insecure_channel(dialled(path), options=CHANNEL_OPTIONS) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[
            whoami_pb2.DescribeRequest, whoami_pb2.DescribeResponse
        ] = channel.unary_unary(
            _METHOD,
            request_serializer=whoami_pb2.DescribeRequest.SerializeToString,
            response_deserializer=whoami_pb2.DescribeResponse.FromString,
        )
        try:
            return await call(whoami_pb2.DescribeRequest(), timeout=_SECONDS)
        except grpc.aio.AioRpcError as error:
            if other := other_socket(path, error, wanted=A_WORKLOADS):
                raise other from error
            raise SocketError(
                f"{path}: {error.code().name}: {error.details()}",
                advice="check that the agent runs and that this is its socket; its log "
                "says why it turned a connection away",
            ) from error


def _table(answer: DescribeResponse) -> str:
    lines = [f"caller      {answer.name or '-'}" + (f" (pid {answer.pid})" if answer.pid else "")]
    lines.append(f"state       {answer.state}")
    for number, selector in enumerate(answer.selectors):
        lines.append(f"{'' if number else 'selectors':<11} {selector.type}:{selector.value}")
    for number, identity in enumerate(answer.identities):
        rule = f"  (rule {identity.rule})" if identity.rule else ""
        lines.append(f"{'' if number else 'identities':<11} {identity.spiffe_id}{rule}")
        lines.extend(f"{'':<11}   {name}" for name in identity.dns_names)
    lines.append(f"why         {answer.why}")
    for number, line in enumerate(answer.details):
        lines.append(f"{'' if number else 'container':<11} {line}")
    return "\n".join(map(printable, lines))
