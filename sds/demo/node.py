"""One simulated node: an authority and an agent without any configuration of the user's.

Owns what the demo and ``sds dev`` share: the two processes, their configuration, their simulated
chip, and where the sockets of the two workloads are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sds.demo.supervisor import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoNode:
    """What to start, and where its sockets will be.

    Attributes:
        parts: the authority (``ca``) and the agent (``agent``).
        sockets: workload -> its SDS socket.
        spiffe_ids: workload -> its SPIFFE ID.
        admin_socket: the agent's socket for people.
    """

    parts: Sequence[Part]
    sockets: Mapping[str, Path]
    spiffe_ids: Mapping[str, str]
    admin_socket: Path
