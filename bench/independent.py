"""The same measurement by an independent load client, to check our own generator against it.

The program takes the arguments below and prints one JSON object with the keys read here. Rotations
are made while it watches; it learns when from a file with a time a line.
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.crowd import median, rotations

if TYPE_CHECKING:
    from bench.contestants import Server
    from bench.crowd import Plan


def check(
    program: str, server: Server, names: list[str], plan: Plan, connecting: float
) -> dict[str, float]:
    """The figures; ``connecting``: seconds after which the crowd surely has its secrets."""
    watch = max(plan.watch if server.rotating is None else plan.rotations * plan.settle, 1.0)
    with tempfile.NamedTemporaryFile(suffix=".times") as times:
        command = [program, "--socket", server.socket, "--n", str(plan.connections)]
        command += ["--names", ",".join(names), "--node-bytes", str(plan.shape.node_bytes)]
        command += ["--one-request-per-name"] if plan.shape.stream_per_name else []
        command += ["--pid", str(server.pid), "--settle", str(plan.settle)]
        command += ["--watch", str(watch + connecting), "--ref-file", times.name]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        time.sleep(connecting + plan.settle)
        put = rotations(server, plan)
        Path(times.name).write_text("".join(f"{at}\n" for at in put))
        answer = json.loads(process.communicate()[0])
    count = plan.connections
    full = [wave for wave in answer["waves"] if wave["arrivals"] == count]

    def waves(key: str) -> float:
        return median(wave.get(key, math.nan) for wave in full)

    return {
        "first secrets p50, ms": answer["connect_ms"]["p50"],
        "first secrets p99, ms": answer["connect_ms"]["p99"],
        "all have theirs, ms": answer["wall_s"] * 1e3,
        "connections without all secrets": count - answer["connected"],
        "CPU per connection, ms": answer["cpu_connect_ms_per_conn"],
        "memory per connection, KiB": answer["rss_per_conn"] / 1024,
        "descriptors per connection": (answer["fds_after"] - answer["fds_base"]) / count,
        "memory before, VmRSS MiB": answer["rss_base"] / 2**20,
        "rotations that reached all": len(full),
        "rotation, first to last arrival, ms": waves("spread_ms"),
        "store to client p50, ms": waves("p50_after_ref_ms"),
        "store to client p99, ms": waves("p99_after_ref_ms"),
        "identical pushes": answer["identical_pushes"],
        "unchanged secrets sent again": answer["unchanged_secrets_resent"],
        "generator, cores": answer["client_cpu_connect_s"] / (answer["wall_s"] + plan.settle),
    }
