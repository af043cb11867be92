"""Secrets in memory, and what a process does to itself before it has any."""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from sds.errors import ConfigurationError, SecretWipedError
from sds.secrets import hardening
from sds.secrets.allocator import is_wanted, is_wiping, wiping_environment
from sds.secrets.key_memory import SecretBytes, wipe


def test_a_secret_is_revealed_until_it_is_wiped() -> None:
    secret = SecretBytes(bytearray(b"key" * 2000))
    assert secret.reveal() == b"key" * 2000
    secret.wipe()
    secret.wipe()
    with pytest.raises(SecretWipedError):
        secret.reveal()


def test_an_empty_secret() -> None:
    assert SecretBytes(b"").reveal() == b""


def test_it_is_in_no_repr_and_cannot_be_pickled() -> None:
    secret = SecretBytes(b"hunter2")
    assert "hunter2" not in repr(secret)
    with pytest.raises(TypeError):
        pickle.dumps(secret)


@pytest.mark.parametrize("data", [bytes(range(1, 200)), bytearray(range(1, 200)), b"", bytearray()])
def test_wiping_in_place(data: bytes | bytearray) -> None:
    size = len(data)
    wipe(data)
    assert data == bytes(size)


def test_its_pages_are_out_of_dumps() -> None:
    secret = SecretBytes(b"x" * 100)
    flags = [
        line.split()[1:]
        for line in Path("/proc/self/smaps").read_text().splitlines()
        if line.startswith("VmFlags:")
    ]
    assert any("dd" in one and "dc" in one for one in flags)  # do not dump, do not copy on fork
    assert secret.reveal()


def test_the_wiping_environment_keeps_what_is_set_and_is_made_once() -> None:
    made = wiping_environment(
        {"A": "b", "GLIBC_TUNABLES": "glibc.malloc.perturb=1:glibc.rtld.nns=2"}, process=7
    )
    assert made is not None
    assert made["A"] == "b"
    assert made["PYTHONMALLOC"] == "malloc"
    assert made["GLIBC_TUNABLES"].split(":") == [
        "glibc.rtld.nns=2",
        "glibc.malloc.perturb=165",
        "glibc.malloc.tcache_count=0",
    ]
    assert is_wiping(made)
    assert wiping_environment(made, process=7) is None
    assert wiping_environment(made, process=8) is None  # a child has it already
    # The C library took the tunables away: not again and again.
    stripped = {name: value for name, value in made.items() if name != "GLIBC_TUNABLES"}
    assert wiping_environment(stripped, process=7) is None
    assert wiping_environment(stripped, process=8) is not None


@pytest.mark.parametrize("value", ["true", "1", "on", "NO", "Yes", "", "no "])
def test_a_switch_without_a_meaning_is_refused(value: str) -> None:
    with pytest.raises(ConfigurationError, match="SDS_WIPING_ALLOCATOR"):
        is_wanted({"SDS_WIPING_ALLOCATOR": value})


def test_yes_is_what_it_says_and_the_default() -> None:
    assert is_wanted({})
    assert is_wanted({"SDS_WIPING_ALLOCATOR": "yes"})
    assert not is_wanted({"SDS_WIPING_ALLOCATOR": "no"})


@pytest.mark.parametrize("value", [None, "yes", "no"])
def test_whether_freed_memory_is_overwritten_is_measured(value: str | None) -> None:
    program = (
        "from sds.secrets.allocator import use_wiping_allocator\n"
        "use_wiping_allocator()\n"
        "from sds.secrets import hardening\n"
        "print(hardening.harden().wiped, hardening._overwrites_what_is_freed())\n"
    )
    environment = {**os.environ, "SDS_WIPING_ALLOCATOR": value or ""}
    if value is None:
        del environment["SDS_WIPING_ALLOCATOR"]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    expected = " True\n" if value != "no" else "SDS_WIPING_ALLOCATOR is 'no' False\n"
    assert done.stdout == expected


def test_a_hardened_process_executes_itself_once_and_says_what_it_could_not_have() -> None:
    program = (
        "import resource, sys\n"
        "from sds.secrets.allocator import use_wiping_allocator\n"
        "from sds.secrets.hardening import harden\n"
        "use_wiping_allocator()\n"
        # Of a hardened process only root may read this.
        "count = open('/proc/self/environ').read().count('_SDS_EXECUTED_AGAIN=')\n"
        "missing = list(harden().missing())\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE), sys.argv[1:], missing)\n"
        "print(count)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "one", "two"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    said, count = done.stdout.splitlines()
    assert said.startswith("(0, 0) ['one', 'two']")
    assert "overwritten" not in said
    assert count == "1"


def test_a_process_without_proc_says_that_its_memory_is_not_locked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The program works without any protection, and without a file system that describes it."""

    def no_such_file(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (65_536, 65_536))
    monkeypatch.setattr("builtins.open", no_such_file)
    assert "RLIMIT_MEMLOCK is 64 KiB" in hardening._lock()
