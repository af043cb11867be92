"""The ``authority:`` section: how to reach an ``sds ca``, for agents and for authorities below one.

Invariant: a valid section chooses exactly one of the two ways of TLS.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field

from sds.authority.attested import AuthoritySettings
from sds.authority.channel import AttestedTls, VerifiedTls, split_address
from sds.authority.root_file import RootFile
from sds.settings.field_types import DnsNameField, Duration, PathField, Settings


class VerifiedTlsSection(Settings):
    """TLS that a configured root vouches for."""

    root: PathField = Field(
        description="PEM file with the roots of the authority's TLS certificate. Changes are "
        "noticed."
    )
    server_name: DnsNameField = Field(
        description="The DNS name in the authority's TLS certificate."
    )


class AuthoritySection(Settings):
    """Where the authority is, and how its TLS is verified."""

    addresses: Annotated[list[str], Field(min_length=1)] = Field(
        description="`host:port` of each replica. The agent picks one and keeps it while it "
        "works; if it fails, the agent asks another at once. With verified TLS, one"
        " name may stand for many replicas."
    )
    tls: Literal["attested"] | VerifiedTlsSection = Field(
        default="attested",
        description="`attested`: the authority's evidence vouches for its self-signed TLS key. "
        "Or a block with `root` and `server_name`, against which its certificate is"
        " verified.",
    )
    connect: Duration = Field(
        default=timedelta(seconds=5),
        description="Time limit for handshake and Challenge with one address. While nobody answers "
        "in time it doubles, but one round over all addresses takes no longer than `answer`.",
    )
    answer: Duration = Field(
        default=timedelta(seconds=30), description="Time limit for the answer to one request."
    )

    def settings(self) -> AuthoritySettings:
        """Return the settings of the client.

        Raises:
            ConfigurationError: an address is not ``host:port``, or the root cannot be read.
        """
        for address in self.addresses:
            split_address(address)
        return AuthoritySettings(
            addresses=tuple(self.addresses),
            tls=AttestedTls()
            if self.tls == "attested"
            else VerifiedTls(roots=RootFile(self.tls.root), server_name=self.tls.server_name),
            connect_seconds=self.connect.total_seconds(),
            answer_seconds=self.answer.total_seconds(),
        )
