"""hostile_client.py SOCKET KIND COUNT [UID]: connections that a door must survive, one process.

Kinds: ``close`` (at once), ``preface`` (half of HTTP/2's, then close), ``silent`` (held open for a
moment, 50 at a time), ``exit`` (a child connects and exits), ``exec`` (a child connects and
executes another program). Prints how many were made. Bare Python: it runs as any user, and becomes
the user UID first.
"""

import contextlib
import os
import socket
import sys

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def connect(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    return client


def child(path: str, kind: str) -> None:
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(OSError):
            client = connect(path)
            if kind == "exec":
                client.set_inheritable(True)
                client.send(PREFACE)
                os.execv("/bin/true", ["true"])
        os._exit(0)
    os.waitpid(pid, 0)


def main(path: str, kind: str, count: int) -> None:
    held: list[socket.socket] = []
    for number in range(count):
        if kind in {"exit", "exec"}:
            child(path, kind)
            continue
        client = connect(path)
        if kind == "silent":
            held.append(client)
            if len(held) == 50:
                while held:
                    held.pop().close()
            continue
        with contextlib.suppress(BrokenPipeError):
            if kind == "preface":
                client.send(PREFACE[: 1 + number % (len(PREFACE) - 1)])
        client.close()
    print("made", count, flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 4:
        os.setgroups([])
        os.setgid(int(sys.argv[4]))
        os.setuid(int(sys.argv[4]))
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
