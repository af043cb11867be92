"""Runs in place of the OCI runtime: asks before ``create`` and ``exec``, then becomes runc.

Owns the parsing of runc's command line, as far as containerd's shim uses it. ``sds admission
wrapper`` writes this file, with its constants, as one script that needs only the standard library.
The script runs for every step of every container, so it imports little and contains no rule.

Invariants: a command line that this module does not know is refused; the command line that runs is
built from the parsed one, so that runc cannot read another meaning into it; without an answer of
the service, nothing starts and nobody enters (if ``enforce``); commands that cannot reach into a
container (``start``, ``kill``, ``delete``, ...) need no answer, so that pods end while the service
is down.

Sources: runc 1.1 ``man/runc*.8.md``; containerd ``go-runc/runc.go``, which makes these lines.
"""

from __future__ import annotations

# Measured: socket, signal and json triple the processor time of each call (20 ms to 60 ms).
import _json
import _signal  # type: ignore[import-not-found]
import _socket
import os
import stat
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

_SECONDS = 10
_MOST_BYTES = 4 << 20
_MOST_ANSWER = 64 << 10
_GLOBAL = {"--log": True, "--log-format": True, "--root": True}
_GLOBAL |= {"--systemd-cgroup": False, "--debug": False}
_CREATE = {"--bundle": True, "--pid-file": True, "--console-socket": True, "--preserve-fds": True}
_CREATE |= {"--no-pivot": False, "--no-new-keyring": False}
_FLAGS: Mapping[str, Mapping[str, bool]] = {
    "create": _CREATE,
    "run": {**_CREATE, "--detach": False},
    "exec": {
        "--process": True,
        "--pid-file": True,
        "--console-socket": True,
        "--detach": False,
        "--tty": False,
    },
}
"""The options of each command that needs an answer, and whether a value follows each option."""
_HARMLESS = frozenset(
    {"delete", "events", "features", "kill", "list", "pause", "ps", "resume", "start", "state"}
    | {"update", "--version", "-v", "--help", "-h", "help"}
)


class NotRead(Exception):  # noqa: N818  it says what was not read
    """Raised for a command line that containerd's shim does not make; the text says why."""


def read_options(
    arguments: Sequence[str], known: Mapping[str, bool]
) -> tuple[dict[str, str], list[str]]:
    """Split words into the options, up to the first word that is not one, and the rest.

    Args:
        arguments: the words of a command line.
        known: the names of options, and whether a value follows each.

    Raises:
        NotRead: an option is unknown, given twice, or without its value.
    """
    found: dict[str, str] = {}
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        name, equals, value = rest.pop(0).partition("=")
        if name not in known:
            raise NotRead(f"the option {name[:100]!r} is unknown")
        if name in found:
            raise NotRead(f"the option {name} is given twice")
        if not known[name]:
            if equals:
                raise NotRead(f"the option {name} takes no value")
        elif not equals:
            if not rest:
                raise NotRead(f"the option {name} has no value")
            value = rest.pop(0)
        found[name] = value
    return found, rest


def words(options: Mapping[str, str], known: Mapping[str, bool]) -> list[str]:
    """Write options in the one form that runc cannot read otherwise."""
    return [f"{name}={value}" if known[name] else name for name, value in options.items()]


class CommandLine:
    """One call of the runtime, parsed.

    Attributes:
        options: the options before the command.
        command: the command, such as ``create``.
        inner: the command's own options; empty for commands that need no answer.
        rest: the words that follow.
        asked: whether the service decides about this call.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        """Parse ``arguments``, which are without the program's name."""
        if len(arguments) == 1 and arguments[0] in _HARMLESS:
            self.options, rest = dict[str, str](), list(arguments)
        else:
            self.options, rest = read_options(arguments, _GLOBAL)
        if not rest:
            raise NotRead("there is no command")
        self.command, self.rest = rest[0], rest[1:]
        self.inner: dict[str, str] = {}
        self.asked = self.command in _FLAGS
        if self.asked:
            self.inner, self.rest = read_options(self.rest, _FLAGS[self.command])
            if len(self.rest) != 1:
                raise NotRead(f"{self.command} needs exactly one container, and nothing after it")
        elif self.command not in _HARMLESS:
            raise NotRead(f"the command {self.command[:100]!r} is not allowed")

    @property
    def arguments(self) -> list[str]:
        """Return the arguments as runc gets them."""
        inner = words(self.inner, _FLAGS[self.command]) if self.asked else []
        return [*words(self.options, _GLOBAL), self.command, *inner, *self.rest]

    @property
    def document(self) -> str:
        """Return the path of what decides: the bundle's configuration, or an ``exec``'s process."""
        if self.command == "exec":
            if "--process" not in self.inner:
                raise NotRead("exec without --process is nothing that the runtime's shim asks for")
            return self.inner["--process"]
        return os.path.join(self.inner.get("--bundle", "."), "config.json")  # noqa: PTH118


def read_document(path: str) -> bytes:
    """Read an ordinary file of bounded size.

    Raises:
        NotRead: the file is not ordinary, is too large, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise NotRead(f"{path} is not an ordinary file")
            content = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise NotRead(f"{path} cannot be read: {why}") from error
    if len(content) > _MOST_BYTES:
        raise NotRead(f"{path} is larger than {_MOST_BYTES} bytes")
    return content


def has_input() -> bool:
    """Say whether the container's standard input is anything but ``/dev/null`` (null(4): 1, 3)."""
    try:
        found = os.fstat(0)
    except OSError:
        return False
    return not (stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(1, 3))


def ask(path: str, line: CommandLine) -> str:
    """Ask the service: return the empty string if it allows this, else the reason why not.

    Raises:
        NotRead: a document that the service needs cannot be read.
        OSError: the service does not answer.
    """
    document = read_document(line.document)
    question = (
        "exec" if line.command == "exec" else "create",
        line.rest[0],
        "input" if has_input() else "",
        line.inner.get("--pid-file", ""),
        str(len(document)),
    )
    # NUL separates the arguments, because no argument contains one.
    header = b"".join(os.fsencode(field) + b"\0" for field in question)
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        # With Python's own timeout, a full queue (a node that starts has many containers) would be
        # an error at once; so the kernel waits: unix(7), socket(7), a struct timeval.
        wait = _SECONDS.to_bytes(8, sys.byteorder) + bytes(8)
        connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, wait)
        connection.connect(path)
        until = time.monotonic() + _SECONDS
        connection.settimeout(_SECONDS)
        connection.sendall(header + document)
        answer = b""
        while not answer.endswith(b"\n"):
            connection.settimeout(max(0.001, until - time.monotonic()))
            part = connection.recv(_MOST_ANSWER)
            if not part or len(answer) > _MOST_ANSWER:
                raise OSError("its answer is cut short")
            answer += part
    finally:
        connection.close()
    said = answer.decode(errors="replace").rstrip("\n")
    if said == "yes":
        return ""
    if not said.startswith("no: "):
        raise OSError("its answer is not understood")
    return said.removeprefix("no: ")


def refuse(options: Mapping[str, str], why: str) -> NoReturn:
    """Say it where containerd looks for runc's own errors (``getLastRuntimeError``), and end."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    words = _json.encode_basestring_ascii(f"refused by sds admission: {why}")
    said = f'{{"level":"error","msg":{words},"time":"{moment}"}}'
    if "--log" in options:
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(options["--log"], flags, 0o600)
            os.write(descriptor, said.encode() + b"\n")
            os.close(descriptor)
        except (OSError, ValueError):
            pass
    sys.stderr.write(f"refused by sds admission: {why}\n")
    sys.stderr.flush()
    os._exit(1)


def main(arguments: Sequence[str], *, runtime: str, service: str, enforce: bool) -> NoReturn:
    """Run one call of the runtime.

    Args:
        arguments: the words after the program's name.
        runtime: the path of the real OCI runtime.
        service: the path of the service's socket.
        enforce: if False, only the service's own log says what it would refuse.
    """
    options: Mapping[str, str] = {}
    to_run = list(arguments)
    try:
        line = CommandLine(arguments)
        options, to_run = line.options, line.arguments
        why = ask(service, line) if line.asked else ""
    except NotRead as error:
        why = str(error)
    except OSError as error:
        why = f"the admission service at {service} does not answer: {error.strerror or error}"
    if why and enforce:
        refuse(options, why)
    # Python ignores these two signals, and the runtime's children would inherit that.
    _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
    _signal.signal(_signal.SIGXFSZ, _signal.SIG_DFL)
    try:
        os.execv(runtime, ["runc", *to_run])  # noqa: S606  it is the point of this program
    except OSError as error:
        refuse(options, f"the runtime {runtime} cannot be executed: {error.strerror}")
