"""What is loaded when (processes of their own): a start waits for nothing that it does not use."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from sds import cli, entry

FIRST_START = """
import os, sys

def execve(path, argv, environment):
    print(environment["PYTHONMALLOC"], *sorted({name.partition(".")[0] for name in sys.modules}))
    os._exit(0)

os.execve = execve
sys.stdout.reconfigure(line_buffering=True)
sys.argv = ["sds", "agent", *sys.argv[1:]]
from sds.entry import main
main()
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_an_agent_executes_itself_again_before_anything_is_loaded() -> None:
    allocator, *loaded = run(FIRST_START, "--config", "/none").stdout.split()
    assert allocator == "malloc"
    assert "sds" in loaded
    assert not {"click", "asyncio", "pydantic", "grpc", "cryptography", "ctypes"} & set(loaded)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--help",), 0, "--check-config"),
        (("--config", "/none", "--check-config"), 2, "/none cannot be read"),
    ],
)
def test_an_agent_that_makes_no_keys_does_not(
    arguments: tuple[str, ...], status: int, said: str
) -> None:
    done = run(FIRST_START, *arguments)
    assert done.returncode == status
    assert said in done.stdout + done.stderr


def test_an_agent_loads_what_only_some_configurations_use_when_they_do() -> None:
    loaded = set(
        run(
            "import sys, sds.commands.agent, sds.agent.config, sds.agent.app\nprint(*sys.modules)"
        ).stdout.split()
    )
    assert {"sds.agent.app", "grpc", "pydantic"} <= loaded
    assert not loaded & {
        "aiohttp",
        "jwt",
        "pkcs11",
        "securesystemslib",
        "watchfiles",
        "sds.agent.node",
        "sds.agent.policy",
        "sds.attestation.kubernetes.token",
        "sds.attestation.snp.simulated",
        "sds.authority.istio",
        "sds.policy.holder",
        "jinja2",
        "sds.operations.status_page.render",
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["agent", "--help"],
        ["completion", "bash"],
        ["bootstrap", "--socket", "/s", "--role", "server"],
    ],
)
def test_a_full_disk_is_said_without_a_traceback(arguments: list[str]) -> None:
    with Path("/dev/full").open("w", encoding="ascii") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sds", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.stderr == "sds: stdout cannot be written: No space left on device\n"
    assert done.returncode == 1


def test_a_reload_amid_the_start_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[object] = []
    monkeypatch.setattr(sys, "argv", ["sds", "ca"])
    monkeypatch.setattr(cli, "main", lambda **_: found.append(signal.getsignal(signal.SIGHUP)))
    before = signal.getsignal(signal.SIGHUP)
    try:
        entry.main()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert found == [signal.SIG_IGN]


@pytest.mark.parametrize("place", [None, "/run/sds/x"])
def test_a_full_disk_elsewhere_is_not_stdout(
    monkeypatch: pytest.MonkeyPatch, place: str | None
) -> None:
    said: list[bytes] = []

    def write(descriptor: int, text: bytes) -> int:
        said.append(text)
        return descriptor

    def end(code: int) -> NoReturn:
        raise SystemExit(code)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(SystemExit):
        entry._cannot_write(OSError(errno.ENOSPC, "No space left on device", place))
    assert said == [
        f"sds: {place or 'stdout'} cannot be written: No space left on device\n".encode()
    ]
