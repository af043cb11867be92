"""Serving under load: time to first secret, fan-out of a rotation, processor time and memory.

``python bench/serving.py`` measures our service beside a bare grpc.aio server (the floor of what
Python can do, see ``bench/sds_server.py``), in turns, with the same client, and prints a table with
ratios for each number of connections and each shape of requests. Every measurement has a server of
its own, started for it.

``--contestants`` chooses among ``ours`` (the service alone), ``prototype`` (the floor), ``agent``
(a whole ``sds agent`` by a workload's socket), ``node`` (by the node-wide socket; both see
``bench/whole_agent.py``), ``spire`` and ``istio`` (see ``bench/peers/``; they are built at their
first measurement). ``--peer LABEL=SOCKET,PID[,NAME...]`` adds a server that runs already (a
SPIRE agent, say; its rotations are its own), ``--peer-command LABEL=COMMAND`` one that is started
each time (see ``bench/contestants.py``). The others are compared with the first contestant.

``--shapes``: ``envoy`` is one stream for each name with first requests of ``--node-bytes``, as a
real Envoy 1.40 sends them; ``small`` is one stream and one small request for all names.

The generator is ``bench/load.py`` in ``--processes`` processes; the table says how busy the busiest
was. ``--sdsload PROGRAM`` (or SDSLOAD in the environment) names an independent load client, which
measures the same once more.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import contestants
from bench.contestants import OWN, PEERS, Contestant, program, running
from bench.crowd import Plan, Shape, measure, median
from bench.independent import check

BUSY = 0.9
INDEPENDENT = "independent client: "

Figures = dict[str, dict[str, list[float]]]
"""By row, then by contestant: one value a run."""


def chosen(given: argparse.Namespace, folder: str) -> list[Contestant]:
    peers = list(given.peer)
    if given.socket:
        peers.append(",".join([f"peer={given.socket}", str(given.pid), *given.peer_names]))
    kinds = given.contestants or (
        ["ours"] if peers or given.peer_command else ["ours", "prototype"]
    )
    return [
        *(contestants.chosen(kind, folder, given.lifetime) for kind in kinds),
        *map(running, peers),
        *map(program, given.peer_command),
    ]


def compare(given: argparse.Namespace, plan: Plan, folder: str) -> None:
    """Measure all in turns, ``--runs`` times, and print the table of medians."""
    figures: Figures = defaultdict(lambda: defaultdict(list))
    measured = chosen(given, folder)
    for _ in range(given.runs):
        for one in measured:
            names = one.names or given.names
            with one.start() as server:
                found = measure(server, names, plan)
            for row, value in found.items():
                figures[row][one.label].append(value)
            if given.sdsload:
                connecting = 1 + 3 * found["all have theirs, ms"] / 1e3
                with one.start() as server:
                    found = check(given.sdsload, server, names, plan, connecting)
                for row, value in found.items():
                    figures[INDEPENDENT + row][one.label].append(value)
    table(figures, [one.label for one in measured])
    busy = max(max(values) for values in figures["generator, busiest process, cores"].values())
    if busy > BUSY:
        print(f"The generator was busy to {busy:.0%} of a core: times may be its own.")


def table(figures: Figures, labels: list[str]) -> None:
    """Medians; after each contestant but the first, the ratio of the first to it."""
    first, *others = labels
    heads = [f"{first:>10}", *(f"{label:>10} | {'ratio':>5}" for label in others)]
    print(f"| {'':55} | {' | '.join(heads)} |")
    print(f"|{'-' * 57}|{'-' * 11}:|" + f"{'-' * 11}:|{'-' * 6}:|" * len(others))
    for row, values in figures.items():
        own_value = median(values[first])
        cells = [f"{own_value:10.2f}"]
        for label in others:
            other = median(values[label])
            ratio = (
                f"{own_value / other:5.2f}"
                if other and not math.isnan(own_value / other)
                else "    -"
            )
            cells.append(f"{other:10.2f} | {ratio}")
        print(f"| {row:55} | {' | '.join(cells)} |", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connections", type=int, nargs="+", default=[250])
    parser.add_argument("--shapes", nargs="+", choices=("envoy", "small"), default=["envoy"])
    parser.add_argument(
        "--contestants", nargs="+", choices=OWN + PEERS, help="default: ours prototype"
    )
    parser.add_argument("--peer", action="append", default=[], metavar="LABEL=SOCKET,PID[,NAME...]")
    parser.add_argument("--peer-command", action="append", default=[], metavar="LABEL=COMMAND")
    parser.add_argument("--socket", help="another SDS server, as --peer peer=SOCKET,PID,NAMES")
    parser.add_argument("--pid", type=int, help="its process")
    parser.add_argument("--peer-names", nargs="+", default=[], help="its names, where they differ")
    parser.add_argument("--names", nargs="+", default=["default", "ROOTCA"])
    parser.add_argument("--node-bytes", type=int, default=61_000)
    parser.add_argument("--processes", type=int, default=2, help="of the generator")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rotations", type=int, default=3)
    parser.add_argument("--settle", type=float, default=2.5, help="seconds between the steps")
    parser.add_argument("--lifetime", default="30s", help="of an agent's certificates")
    parser.add_argument(
        "--watch", type=float, default=33.0, help="seconds for servers that rotate by themselves"
    )
    parser.add_argument("--patience", type=float, default=60.0, help="seconds until all are served")
    parser.add_argument("--sdsload", default=os.environ.get("SDSLOAD"), help="independent client")
    given = parser.parse_args()
    if given.socket and given.pid is None:
        parser.error("--socket needs --pid")
    return given


def main() -> None:
    given = arguments()
    shapes = {
        "envoy": Shape(node_bytes=given.node_bytes, stream_per_name=True),
        "small": Shape(node_bytes=0, stream_per_name=False),
    }
    for name in given.shapes:
        for connections in given.connections:
            plan = Plan(
                connections=connections,
                shape=shapes[name],
                processes=given.processes,
                rotations=given.rotations,
                settle=given.settle,
                watch=given.watch,
                patience=given.patience,
            )
            print(
                f"\n{connections} connections, shape {name}, medians of {given.runs} run(s); load "
                f"average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors\n"
            )
            with tempfile.TemporaryDirectory() as folder:
                compare(given, plan, folder)


if __name__ == "__main__":
    main()
