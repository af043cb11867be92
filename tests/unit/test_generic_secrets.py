import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest

from sds.clock import SystemClock
from sds.errors import ConfigurationError
from sds.identity import Identity, SpiffeId, TrustDomain
from sds.secrets.key_memory import SecretBytes
from sds.secrets.store import SecretStore
from sds.serving import generic_secrets
from sds.serving.generic_secrets import MAX_BYTES, GenericSecretFiles, read_memory_file
from sds.serving.secret_catalog import Aliases
from sds.workload.entitlement import Caller

IDENTITY = Identity(spiffe_id=SpiffeId(TrustDomain("example.org"), "/web"))
WEB = Caller(name="web", selectors=frozenset(), identities=(IDENTITY,))
API = Caller(name="api", selectors=frozenset(), identities=(IDENTITY,))


def memory_file(content: bytes) -> Path:
    """An anonymous memory file, as an operator passes one by inheritance."""
    descriptor = os.memfd_create("secret")
    os.write(descriptor, content)
    return Path(f"/proc/self/fd/{descriptor}")


def files(path: Path, name: str = "token") -> GenericSecretFiles:
    return GenericSecretFiles(SecretStore(), files={"web": {name: path}}, aliases=Aliases())


def test_a_value_is_served_to_its_workload_only_and_follows_its_file() -> None:
    path = memory_file(b"one")
    secrets = files(path)
    first = secrets.current(WEB, "token")
    assert first is not None
    assert first[1] == b"one"
    assert secrets.current(API, "token") is None
    assert list(secrets.names(WEB)) == ["token"]
    assert not secrets.names(API)
    assert not secrets.reload()
    assert secrets.current(WEB, "token") == first
    path.write_bytes(b"two")
    assert secrets.reload()
    second = secrets.current(WEB, "token")
    assert second is not None
    assert second[1] == b"two"
    assert second[0] != first[0]


def test_a_file_on_a_disk_is_refused() -> None:
    path = Path(__file__)
    if path.stat().st_dev == Path("/dev/shm").stat().st_dev:
        pytest.skip("this checkout is on a tmpfs")
    with pytest.raises(ConfigurationError, match="not a file in memory"):
        read_memory_file(path)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        read_memory_file(tmp_path / "none")
    with pytest.raises(ConfigurationError, match="not a file in memory"):
        read_memory_file(tmp_path)
    with pytest.raises(ConfigurationError, match="at most"):
        read_memory_file(memory_file(b"x" * (MAX_BYTES + 1)))


@pytest.mark.parametrize(
    "name",
    [
        "default",
        "ROOTCA",
        "ALL",
        "session_tickets",
        "inbound",
        "outbound:x",
        "*",
        "",
        "spiffe://a/b",
    ],
)
def test_a_name_that_means_something_else_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="name of another secret"):
        files(memory_file(b"x"), name)


def test_aliases_are_checked() -> None:
    with pytest.raises(ConfigurationError, match="two secrets"):
        Aliases(svid=("a",), bundle=("a",))
    for bad in ("", "*", "inbound", "spiffe://x", "outbound:x"):
        with pytest.raises(ConfigurationError, match="cannot be an alias"):
            Aliases(svid=(bad,))


def test_a_file_that_is_being_written_is_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    path = memory_file(b"a password")
    secrets = files(path)
    before = secrets.current(WEB, "token")
    path.write_bytes(b"")
    with pytest.raises(
        ConfigurationError, match=r"generic_secrets\.token of the workload web.*empty"
    ):
        secrets.reload()
    assert secrets.current(WEB, "token") == before
    path.write_bytes(b"another password")
    read = os.preadv

    def cut(descriptor: int, buffers: list[bytearray], offset: int) -> int:
        path.write_bytes(b"ano")  # somebody writes it in place
        return read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", cut)
    with pytest.raises(ConfigurationError, match="changed while it was read"):
        secrets.reload()

    def fails(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    with pytest.raises(ConfigurationError, match="Input/output error"):
        secrets.reload()
    assert secrets.current(WEB, "token") == before


async def test_a_value_that_changes_is_served_without_a_restart(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = memory_file(b"one"), memory_file(b"two")
    secrets = GenericSecretFiles(
        SecretStore(), files={"web": {"a": first, "b": second}}, aliases=Aliases()
    )
    pushes: list[tuple[bytes, ...]] = []

    def values() -> tuple[bytes, ...]:
        found = (secrets.current(WEB, name) for name in ("a", "b"))
        return tuple(one[1] for one in found if one is not None)

    following = asyncio.create_task(
        secrets.follow(lambda: pushes.append(values()), clock=SystemClock())
    )
    try:
        first.write_bytes(b"ONE")
        second.write_bytes(b"")  # somebody is about to write it
        secrets.ask()
        while not pushes:
            await asyncio.sleep(0.001)
        assert pushes == [(b"ONE", b"two")]
        assert caplog.text.count("its value stays as it was") == 1
        assert "generic_secrets.b of the workload web" in caplog.text
        notice, *others = secrets.notices()
        assert notice.startswith("a generic secret stays as it was: generic_secrets.b of the")
        assert not others
        caplog.set_level("INFO")
        second.write_bytes(b"TWO")
        secrets.ask()
        while len(pushes) < 2:
            await asyncio.sleep(0.001)
    finally:
        following.cancel()
        await asyncio.wait([following])
    assert pushes[1:] == [(b"ONE", b"TWO")]
    assert caplog.text.count("a generic secret can be read again") == 1
    assert secrets.notices() == ()


async def test_a_file_that_hangs_keeps_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = files(memory_file(b"one"))
    answers = threading.Event()
    monkeypatch.setattr(generic_secrets, "ANSWER_SECONDS", 0.01)
    with monkeypatch.context() as patched:
        patched.setattr(generic_secrets, "_read", lambda *_, **__: answers.wait())
        await secrets._look(lambda: None)
        answers.set()
    found = secrets.current(WEB, "token")
    assert found is not None
    assert found[1] == b"one"


async def test_a_file_that_hangs_keeps_no_other_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    other = memory_file(b"one")
    named = {"hangs": memory_file(b"x"), "token": other}
    secrets = GenericSecretFiles(SecretStore(), files={"web": named}, aliases=Aliases())
    answers, read, asked = threading.Event(), generic_secrets.read_memory_file, []

    def hang(path: Path) -> SecretBytes:
        if path == named["hangs"]:
            asked.append(path)
            answers.wait()
        return read(path)

    monkeypatch.setattr(generic_secrets, "read_memory_file", hang)
    monkeypatch.setattr(generic_secrets, "ANSWER_SECONDS", 0.01)
    try:
        async with asyncio.timeout(10):
            for value in (b"two", b"three"):
                other.write_bytes(value)
                while value not in (secrets.current(WEB, "token") or ()):
                    await secrets._look(lambda: None)
    finally:
        answers.set()
    assert len(asked) == 1, "one thread is occupied"
