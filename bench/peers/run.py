"""Runs one peer for one measurement.

    python bench/peers/run.py spire [--lifetime 30s]     a SPIRE server and agent, unix attestor
    python bench/peers/run.py istio                      Istio's SDS server over one certificate

It prints ``ready socket=PATH pid=PID`` as :mod:`bench.contestants` describes, and ends at SIGTERM.
SPIRE attests its agent by a join token, keeps keys in memory and gives the user who runs this one
identity, ``spiffe://example.org/web``; it rotates by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.peers.programs import ISTIO, SPIRE
from tests.support.node import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATIENCE = 60.0
_SERVER = """
server {{
  bind_address = "127.0.0.1"
  bind_port = "{port}"
  socket_path = "{folder}/server.sock"
  trust_domain = "example.org"
  data_dir = "{folder}/server"
  log_level = "ERROR"
  default_x509_svid_ttl = "{lifetime}"
  ca_ttl = "1h"
}}
plugins {{
  DataStore "sql" {{
    plugin_data {{ database_type = "sqlite3", connection_string = "{folder}/server.db" }}
  }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "memory" {{ plugin_data {{}} }}
}}
"""
_AGENT = """
agent {{
  data_dir = "{folder}/agent"
  log_level = "ERROR"
  server_address = "127.0.0.1"
  server_port = "{port}"
  socket_path = "{folder}/agent.sock"
  trust_domain = "example.org"
  insecure_bootstrap = true
}}
plugins {{
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "memory" {{ plugin_data {{}} }}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"""


@contextlib.contextmanager
def started(*command: object, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs while the block does."""
    with log.open("ab") as output:
        process = subprocess.Popen([str(each) for each in command], stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(_PATIENCE)


def until(log: Path, *command: object) -> str:
    """The output of a command, as soon as it succeeds."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        asked = subprocess.run(
            [str(each) for each in command], capture_output=True, text=True, check=False
        )
        if asked.returncode == 0:
            return asked.stdout
        if time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-2000:]
            raise SystemExit(f"{command}: {asked.stdout}{asked.stderr}\n{said}")
        time.sleep(0.2)


def spire(folder: Path, lifetime: str, stop: threading.Event) -> None:
    programs = SPIRE.built()
    log, port = folder / "log", free_port()
    for name, text in (("server", _SERVER), ("agent", _AGENT)):
        (folder / name).mkdir()
        written = text.format(folder=folder, port=port, lifetime=lifetime)
        (folder / f"{name}.conf").write_text(written)
    server, agent = programs / "spire-server", programs / "spire-agent"
    admin = ("-socketPath", folder / "server.sock")
    with started(server, "run", "-config", folder / "server.conf", log=log):
        until(log, server, "healthcheck", *admin)
        host = "spiffe://example.org/host"
        token = until(log, server, "token", "generate", "-spiffeID", host, *admin).split()[-1]
        entry = ("-spiffeID", "spiffe://example.org/web", "-selector", f"unix:uid:{os.getuid()}")
        until(log, server, "entry", "create", "-parentID", host, *entry, *admin)
        command = (agent, "run", "-config", folder / "agent.conf", "-joinToken", token)
        with started(*command, log=log) as process:
            path = folder / "agent.sock"
            until(log, agent, "api", "fetch", "x509", "-socketPath", path)
            print(f"ready socket={path} pid={process.pid}", flush=True)
            stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peer", choices=("spire", "istio"))
    parser.add_argument("--lifetime", default="30s", help="of SPIRE's certificates")
    given = parser.parse_args()
    if given.peer == "istio":
        program = ISTIO.built() / "istio-sds"
        # It ends at SIGTERM by itself; its folder is one that the system empties.
        os.execv(program, [str(program), tempfile.mkdtemp(prefix="istio-")])
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="spire-") as folder:
        spire(Path(folder), given.lifetime, stop)


if __name__ == "__main__":
    main()
