"""What is loaded when (processes of their own): a start waits for nothing that it does not use."""

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import CliRunner

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


@pytest.mark.slow
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


@pytest.mark.slow
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
        "sds.agent.node",
        "sds.agent.policy",
        "sds.attestation.kubernetes.token",
        "sds.attestation.snp.simulated",
        "sds.authority.istio",
        "sds.policy.holder",
        "jinja2",
        "sds.operations.status_page.render",
    }


@pytest.mark.slow
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


@pytest.mark.parametrize("daemon", ["ca", "admission"])
def test_a_reload_amid_the_start_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch, daemon: str
) -> None:
    found: list[object] = []
    monkeypatch.setattr(sys, "argv", ["sds", daemon])
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


CLOSED = """
import os, sys
for descriptor in (0, 2):
    os.close(descriptor)
from sds.entry import _keep_standard_descriptors
_keep_standard_descriptors()
left = os.open("/etc/hostname", os.O_RDONLY)
print(*(os.readlink(f"/proc/self/fd/{each}") for each in (0, 2)), left > 2)
"""


def test_no_file_of_ours_gets_a_standard_descriptor() -> None:
    assert run(CLOSED).stdout.split() == ["/dev/null", "/dev/null", "True"]


def test_what_the_locale_cannot_write_is_escaped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A name that is not UTF-8, and a character that Latin-1 does not have."""
    written = io.BytesIO()
    out = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.yaml")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    for words in (
        ["policy", "new", "--trust-domain", "a.example", "--out", out],
        ["policy", "explain", "--help"],
    ):
        monkeypatch.setattr(sys, "argv", ["sds", *words])
        with pytest.raises(SystemExit) as ended:
            entry.main()
        assert ended.value.code == 0
    said = written.getvalue()
    assert rb"\udcff.yaml" in said
    assert rb"\u2026 --method GET" in said


def test_a_working_directory_that_is_gone_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    result = CliRunner().invoke(cli.main, ["status", "--run-dir", "x"])
    assert result.exit_code == 2
    assert "working directory cannot be found" in result.stderr
