"""One node that lives by a signed policy, and the people who sign it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from tests.support.node import AUTHORITY, NODE, TRUST_DOMAIN, Node
from tests.support.policies import Signatory, document, sign
from tests.support.process import PATIENCE_SECONDS
from tests.support.xds_client import channel, fetch, secrets

if TYPE_CHECKING:
    from pathlib import Path

S = f"spiffe://{TRUST_DOMAIN}"


@dataclass
class Site:
    """One node, and the people who sign its policy."""

    node: Node
    signatory: Signatory = field(default_factory=lambda: Signatory("alice"))

    def __post_init__(self) -> None:
        self.key.write_text(self.signatory.public.pem)

    @property
    def key(self) -> Path:
        return self.node.folder / "alice.pub"

    def file(self, name: str) -> Path:
        return self.node.folder / f"{name}.json"

    def section(self, name: str) -> dict[str, Any]:
        return {"file": str(self.file(name)), "keys": [str(self.key)]}

    def signed(self, epoch: int, *pairs: tuple[str, str], **fields: Any) -> bytes:
        now = datetime.now(UTC)
        whole = {
            "not_before": (now - timedelta(hours=1)).isoformat(),
            "not_after": (now + timedelta(hours=1)).isoformat(),
            "reference_values": {
                "agents": {"measurements": [NODE.hex()]},
                "authorities": {"measurements": [AUTHORITY.hex()]},
            },
            "nodes": [
                {
                    "name": "nodes",
                    "measurements": [NODE.hex()],
                    "grants": [{"spiffe_ids": f"{S}/*"}],
                }
            ],
            "workloads": [
                {"name": name, "match": {"socket:name": name}, "spiffe_id": f"{S}/{name}"}
                for name in self.node.workloads
            ],
            "allow": [{"from": f"{S}/{one}", "to": f"{S}/{two}"} for one, two in pairs],
        }
        return sign(document(epoch, **{**whole, **fields}), self.signatory)

    def publish(self, content: bytes, *names: str) -> None:
        """Replace files at once, as `sds policy sign` does."""
        for name in names:
            new = self.file(name).with_suffix(".new")
            new.write_bytes(content)
            new.replace(self.file(name))

    def authority(self, **changes: Any) -> Any:
        return self.node.authority(identities=[], policy=self.section("ca"), **changes)

    def agent(self, **changes: Any) -> Any:
        return self.node.agent(**{"policy": self.section("agent"), **changes})

    async def context(self, workload: str, name: str = "inbound") -> list[str]:
        """The values of the SAN matchers that a fresh client gets."""
        async with channel(f"unix:{self.node.socket(workload)}") as connection:
            got = secrets(await fetch(connection, name))
        matchers = got[name].validation_context.match_typed_subject_alt_names
        return [
            one.matcher.exact or one.matcher.safe_regex.regex or one.matcher.prefix
            for one in matchers
        ]

    async def until(self, workload: str, expected: list[str]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await self.context(workload) != expected:
                await asyncio.sleep(0.05)
