"""Runs inside a small PID namespace: connections of dead processes whose pid a victim has now.

Again and again: an attacker connects and dies while an accomplice (this process) keeps the
connection; then processes are started until one of them, with the executable that the rule wants,
has the attacker's pid. Sometimes the door accepts only then. Nobody may ever be recognised through
such a connection; the victim itself must be. Usage: pid_reuse.py FOLDER VICTIM.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

from sds.clock import SystemClock
from sds.workload.executables import Executables
from sds.workload.recognition import Timing
from sds.workload.unix import UnixAttestor
from tests.support.door_client import CLOSED, REFUSED, Asker
from tests.support.front_door import front_door, rules

ROUNDS = 40
TIMING = Timing(hold=0.3, retry_first=0.01, retry_most=0.02, recheck=0.02, linger=0)


def attacker(path: str) -> tuple[int, socket.socket]:
    """A process that connects and is dead and reaped on return; its pid and its connection."""
    ours, theirs = socket.socketpair()
    pid = os.posix_spawn(
        sys.executable,
        [
            sys.executable,
            "-S",
            "-c",
            (
                "import socket,sys; c=socket.socket(socket.AF_UNIX); c.connect(sys.argv[1]);"
                "socket.send_fds(socket.socket(fileno=int(sys.argv[2])), [b'x'], [c.fileno()])"
            ),
            path,
            str(theirs.fileno()),
        ],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), theirs.fileno())],
    )
    with ours:
        theirs.close()
        _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
    os.waitpid(pid, 0)
    return pid, socket.socket(fileno=descriptor)


def victim_with_pid(pid: int, program: str) -> subprocess.Popen[bytes] | None:
    """Use up pids until this one is next, then start the victim."""
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
    victim = subprocess.Popen(
        [program, "-S", "-c", "import time; time.sleep(60)"],
        env={"PYTHONHOME": sys.base_prefix},
    )
    if victim.pid == pid:
        return victim
    victim.kill()
    victim.wait()
    return None


async def main(folder: Path, program: str) -> None:
    digest = hashlib.sha256(Path(program).read_bytes()).hexdigest()
    reused = recognised = 0
    attestors = [UnixAttestor(Executables(SystemClock()))]
    mapping = rules({"unix:sha256": digest})
    async with front_door(folder, attestors=attestors, rules=mapping, timing=TIMING) as door:
        for number in range(ROUNDS):
            victim = None
            while victim is None:
                # Not awaiting here keeps the door from accepting before the pid is used again.
                if number % 2:
                    pid, kept = await asyncio.to_thread(attacker, str(door.path))
                else:
                    pid, kept = attacker(str(door.path))
                if number % 4 == 3:
                    await asyncio.sleep(random.uniform(0, 0.01))
                victim = victim_with_pid(pid, program)
                if victim is None:
                    kept.close()
            reused += 1
            answer = await asyncio.to_thread(Asker(kept).ask)
            if answer not in {CLOSED, REFUSED}:
                recognised += 1
            kept.close()
            victim.kill()
            victim.wait()
    sys.stdout.write(f"reused {reused} of {ROUNDS}, recognised {recognised}\n")


if __name__ == "__main__":
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
