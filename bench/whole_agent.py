"""A whole ``sds agent`` to measure, with a real ``sds ca`` behind it and everything on.

    python bench/whole_agent.py agent     by the socket of one workload
    python bench/whole_agent.py node      by the node-wide socket: front door and unix attestor

Attestation (simulated), limits, metrics endpoint and wiping allocator are as in real use; only the
node-wide socket's limit of connections for one user is raised. It prints
``ready socket=PATH pid=PID`` and ends at SIGTERM. The agent rotates by itself, at 40 to 50 % of
``--lifetime``. One client fetches its certificate before, so that a crowd does not wait for the
authority (on the node-wide socket an identity is kept from its first caller on).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.node import TRUST_DOMAIN, Node, short_folder
from tests.support.xds_client import Sotw, channel

CONNECTIONS = 16_384


async def serve(kind: str, lifetime: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    with short_folder() as folder:
        node = Node(folder, workloads=("web",), lifetime=lifetime)
        changes: dict[str, Any] = {"metrics": {"listen": f"unix:{folder}/metrics.sock"}}
        path = node.socket("web")
        if kind == "node":
            path = node.run_dir / "node" / "sds.sock"
            changes |= {
                "node": {
                    "attestors": ["unix"],
                    "linger": "1h",
                    "connections": CONNECTIONS,
                    "connections_per_owner": CONNECTIONS,
                },
                "workloads": [
                    {
                        "name": "user",
                        "match": {"unix:uid": str(os.geteuid())},
                        "spiffe_id": f"spiffe://{TRUST_DOMAIN}/user",
                        "lifetime": lifetime,
                    }
                ],
            }
        async with node.authority(), node.agent(ready=kind != "node", **changes) as agent:
            while not path.exists():  # noqa: ASYNC110  another process makes it
                await asyncio.sleep(0.05)
            async with channel(f"unix:{path}") as connection:
                stream = Sotw(connection)
                await stream.ask("default")
                await stream.next()
                stream.cancel()
            await asyncio.sleep(1)
            print(f"ready socket={path} pid={agent.pid}", flush=True)
            await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("agent", "node"))
    parser.add_argument("--lifetime", default="30s", help="of its certificates")
    given = parser.parse_args()
    asyncio.run(serve(given.kind, given.lifetime))


if __name__ == "__main__":
    main()
