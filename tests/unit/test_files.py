"""Files that somebody names: whatever is in their place is an error at once, and nobody waits."""

from __future__ import annotations

import ast
import errno
import io
import os
import resource
import signal
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sds.ca.tls import tls_from_files
from sds.ca.token_keys import key_reader
from sds.errors import ConfigurationError, SdsError
from sds.federation.refresh import parse_bundle_file
from sds.files import read_file, replace_file
from sds.policy.keys import read_verification_key
from sds.policy.offered_files import read_signed
from sds.serving.generic_secrets import read_memory_file
from sds.settings import yamlfile
from sds.settings.checking import ConfigurationChecks
from tests.support.pem_forms import FORMS
from tests.support.source import methods_called

if TYPE_CHECKING:
    from collections.abc import Callable

MOST = 1000
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path)


def nothing(_: Path) -> None:
    pass


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


PLACES = pytest.mark.parametrize("make", [fifo, folder, device, loop, nothing, huge])
pytestmark = pytest.mark.timeout(20)


@PLACES
def test_what_is_no_ordinary_file_is_an_error(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "named"
    make(path)
    with pytest.raises(OSError, match=str(path)) as caught:
        read_file(path, max_bytes=MOST)
    assert caught.value.strerror


def test_a_file_of_the_kernel_that_has_nothing_now_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as /proc/kmsg, which is an ordinary file and may make its reader wait."""
    path = tmp_path / "named"
    path.touch()

    class Waits(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, _: object) -> None:
            return None

    monkeypatch.setattr(os, "fdopen", lambda *_, **__: io.BufferedReader(Waits()))
    with pytest.raises(BlockingIOError, match="nothing to read now"):
        read_file(path, max_bytes=MOST)


@PLACES
@pytest.mark.parametrize(
    "read",
    [
        yamlfile.read,
        read_verification_key,
        read_memory_file,
        parse_bundle_file,
        lambda path: read_signed(path, max_bytes=MOST),
        lambda path: tls_from_files(path, path, now=NOW),
    ],
)
def test_every_reader_says_which_file(
    tmp_path: Path, make: Callable[[Path], None], read: Callable[[Path], object]
) -> None:
    path = tmp_path / "named.pem"
    make(path)
    with pytest.raises(SdsError, match=str(path)):
        read(path)


@pytest.mark.parametrize("form", ["a byte order mark", "a comment beyond ASCII"])
def test_a_key_of_policy_counts_as_editors_leave_it(form: str, tmp_path: Path) -> None:
    public = ed25519.Ed25519PrivateKey.generate().public_key()
    path = tmp_path / "mira.pub"
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.write_bytes(FORMS[form](pem))
    assert read_verification_key(path).pem.encode() == pem


def test_a_policy_whose_place_cannot_be_looked_at(tmp_path: Path) -> None:
    place = tmp_path / ("a" * 300)
    with pytest.raises(SdsError, match=f"{place} cannot be read: File name too long"):
        read_signed(place, max_bytes=MOST)


def test_a_name_with_nul() -> None:
    with pytest.raises(OSError, match="NUL") as caught:
        read_file(Path("/a\0b"), max_bytes=MOST)
    assert caught.value.errno == errno.EINVAL


def test_a_pipe_that_is_open_already_is_read() -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, b"text")
        os.close(writing)
        assert read_file(Path(f"/dev/fd/{reading}"), max_bytes=MOST) == b"text"
    finally:
        os.close(reading)


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "named"
    path.write_bytes(bytes(MOST))
    assert read_file(path, max_bytes=MOST) == bytes(MOST)
    path.write_bytes(bytes(MOST + 1))
    with pytest.raises(OSError, match=f"larger than {MOST} bytes"):
        read_file(path, max_bytes=MOST)


OWN = {
    "sds/admission/script.py": "the source of a module of ours",
    "sds/attestation/collateral/storing.py": "compares with what it is about to write",
    "sds/control_group.py": "the kernel's files of our own control group",
    "sds/commands": "a person's command waits for what the person named",
    "sds/demo": "files of its own",
    "sds/operations/metrics/families.py": "the kernel's file about ourselves",
    "sds/attestation/guest": "the kernel's interfaces of confidential guests",
    "sds/secrets/heap_trim.py": "the kernel's files about ourselves",
    "sds/workload": "the kernel's files about processes, and files of our own",
}
"""Code that reads files by other means, and why it may."""


@pytest.mark.no_cover
def test_nothing_writes_a_file_in_place() -> None:
    """A reader of ours, or of others, would find half of it."""
    found = {
        name
        for name, _, attribute in methods_called()
        if attribute.attr in {"write_bytes", "write_text"}
    }
    own = ("sds/commands", "sds/demo")
    assert {name for name in found if not name.startswith(own)} == set()


@pytest.mark.parametrize("make", [nothing, fifo, loop])
def test_a_file_is_replaced_as_a_whole_whatever_is_in_its_place(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "named"
    make(path)
    replace_file(path, b"new", mode=0o640)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o640)
    assert [one.name for one in tmp_path.iterdir()] == ["named"]


def test_a_replaced_file_outlasts_a_loss_of_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "named"
    path.write_bytes(b"old")
    kept: list[tuple[bool, bytes]] = []

    def fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        kept.append((is_folder, path.read_bytes()))

    monkeypatch.setattr(os, "fsync", fsync)
    replace_file(path, b"new", mode=0o600)
    assert kept == [(False, b"old"), (True, b"new")]  # first the content, then the name


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    for path in (link, Path("/dev/stdout"), Path("/proc/self/fd/1")):
        with pytest.raises(OSError, match="a device is there"):
            replace_file(path, b"new", mode=0o644)
    assert link.is_symlink()
    checks = ConfigurationChecks("a.yaml", now=NOW)
    checks.replaceable_file("csr_file", link)
    with pytest.raises(ConfigurationError, match=r"csr_file: .*a device is there"):
        checks.raise_all()


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "named"
    path.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))  # as a disk that is full
        with pytest.raises(OSError, match="too large"):
            replace_file(path, bytes(100), mode=0o600)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["named"]


@PLACES
async def test_a_key_set_that_is_no_ordinary_file_holds_no_thread(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "jwks.json"
    make(path)
    with pytest.raises(OSError, match=str(path)):
        await key_reader(path, None)()  # type: ignore[arg-type]  # no API server is asked


def test_nothing_else_reads_what_is_named() -> None:
    found = set()
    for name, node, attribute in methods_called():
        called = attribute.attr
        if called in {"read_bytes", "read_text"} and not ast.unparse(attribute.value).startswith(
            ("resources.", "files(", "importlib.")
        ):
            found.add(name)
        if called == "load_verify_locations" and any(
            keyword.arg != "cadata" for keyword in node.keywords
        ):
            found.add(name)
    assert {name for name in found if not name.startswith(tuple(OWN))} == set()
