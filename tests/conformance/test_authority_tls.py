"""TLS of the authority's port by files that change: a certificate is renewed, a root replaced."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sds.authority import root_file
from sds.authority.attested import AuthoritySettings
from sds.authority.channel import (
    TLS_SERVER_NAME,
    AttestedTls,
    VerifiedTls,
    connect,
    verified_channel,
)
from sds.authority.root_file import RootFile
from sds.ca.tls import TlsIdentity, self_signed_tls
from sds.ca.tls_files import FollowedTls
from sds.clock import SystemClock
from sds.errors import AuthorityUnavailableError, ConfigurationError
from sds.exchange.item import IssuedChain
from sds.pki import certificate_pem, certificates_from_pem, load_certificate, private_key_pem
from sds.rules.duration import LONGEST
from tests.support.authority import World, wish
from tests.support.certificates import Wish, common_name, self_signed
from tests.support.no_threads import give_no_more_threads
from tests.support.pem_forms import FORMS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sds.authority.attested import AttestedAuthority

NAME = "ca.test"


def tls() -> TlsIdentity:
    return self_signed_tls(server_names=[NAME])


def write(folder: Path, identity: TlsIdentity) -> None:
    (folder / "tls.crt").write_bytes(identity.certificate_pem)
    (folder / "tls.key").write_bytes(identity.key_pem)


def followed(folder: Path) -> FollowedTls:
    return FollowedTls(folder / "tls.crt", folder / "tls.key", clock=SystemClock())


def _handshake(port: int) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=TLS_SERVER_NAME) as connection,
    ):
        return ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True) or b"").encode()


async def shown(port: int) -> bytes:
    """The certificate that a new connection gets, PEM."""
    return await asyncio.to_thread(_handshake, port)


async def issued(client: AttestedAuthority) -> None:
    (outcome,) = (await client.issue([wish()[1]])).outcomes
    assert isinstance(outcome, IssuedChain), outcome


async def test_a_renewed_certificate_is_for_new_connections_and_costs_the_old_ones_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world, first, second = World(), tls(), tls()
    write(tmp_path, first)
    served = followed(tmp_path)
    roots = first.certificate_pem + second.certificate_pem
    async with world.running(tls=served) as authority:
        verified = AuthoritySettings(
            addresses=(f"127.0.0.1:{authority.port}",),
            tls=VerifiedTls(roots=roots, server_name=NAME),
            connect_seconds=5,
        )
        async with world.client(settings=verified) as old, world.client(authority.port) as attested:
            await issued(old)
            await issued(attested)
            assert await shown(authority.port) == first.certificate_pem
            # The certificate came, its key did not yet.
            (tmp_path / "tls.crt").write_bytes(second.certificate_pem)
            for _ in range(2):
                await served.look()
            assert await shown(authority.port) == first.certificate_pem
            said = [r for r in caplog.records if "the one that was read before stays" in r.message]
            assert len(said) == 1
            assert "is not the key of" in said[0].message
            write(tmp_path, second)
            caplog.set_level("INFO")
            await served.look()
            assert caplog.text.count("the TLS certificate can be used again") == 1
            for _ in range(2):
                assert await shown(authority.port) == second.certificate_pem
            assert served.not_after == second.not_after
            streams = authority.service.streams
            await issued(old)  # on the connection that it has
            assert authority.service.streams == streams
            # Where evidence binds the key, the connection of before proves nothing any more: a
            # new one is made within the same request.
            await issued(attested)
            async with world.client(settings=verified) as new:
                await issued(new)


async def test_files_are_followed(tmp_path: Path) -> None:
    first, second = tls(), tls()
    write(tmp_path, first)
    served = followed(tmp_path)
    following = asyncio.create_task(served.follow())
    try:
        for name, content in (("tls.key", second.key_pem), ("tls.crt", second.certificate_pem)):
            (tmp_path / f"{name}.new").write_bytes(content)
            (tmp_path / f"{name}.new").replace(tmp_path / name)
        while served.key_digest != second.key_digest:
            await asyncio.sleep(0.02)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def test_a_certificate_that_is_made_while_the_clock_is_wrong_is_valid_when_it_is_right() -> None:
    """An authority makes one when it starts, and agents refused it until the next start."""
    made = load_certificate(certificates_from_pem(tls().certificate_pem)[0])
    assert made.not_valid_before_utc.year <= 1970
    assert made.not_valid_after_utc == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


async def test_what_has_expired_or_is_gone_takes_nothing_away(tmp_path: Path) -> None:
    first = tls()
    write(tmp_path, first)
    served = followed(tmp_path)
    past = SystemClock().now().wall - timedelta(days=2)
    over = self_signed(Wish(not_before=past, not_after=past + timedelta(days=1)))
    (tmp_path / "tls.crt").write_bytes(certificate_pem([over.der]))
    (tmp_path / "tls.key").write_bytes(private_key_pem(over.key))
    await served.look()
    (tmp_path / "tls.crt").unlink()
    await served.look()
    assert served.key_digest == first.key_digest
    with pytest.raises(ConfigurationError, match=r"tls\.crt cannot be read"):
        followed(tmp_path)


@contextlib.asynccontextmanager
async def client_of(world: World, file: RootFile, port: int) -> AsyncIterator[AttestedAuthority]:
    settings = AuthoritySettings(
        addresses=(f"127.0.0.1:{port}",),
        tls=VerifiedTls(roots=file, server_name=NAME),
        connect_seconds=5,
    )
    async with world.client(settings=settings) as client:
        yield client


async def test_a_time_limit_may_be_as_long_as_a_duration() -> None:
    """Before, no connection could be made, and the error was gRPC's."""
    seconds = LONGEST.total_seconds()
    await verified_channel("ipv4:127.0.0.1:1", tls().certificate_pem, NAME, seconds=seconds).close()


async def test_a_root_of_the_authoritys_tls_that_is_replaced_needs_no_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world, first, second = World(), tls(), tls()
    path = tmp_path / "root.pem"
    path.write_bytes(first.certificate_pem)
    file = RootFile(path)
    async with contextlib.AsyncExitStack() as stack:
        authority = await stack.enter_async_context(world.running(tls=first))
        client = await stack.enter_async_context(client_of(world, file, authority.port))
        await issued(client)
        # What cannot be used leaves what was read before, and is said once.
        path.write_bytes(b"-----BEGIN CERTIFICATE-----\nMIIB")
        for _ in range(2):
            await issued(client)
        assert caplog.text.count("those that were read before stay in force") == 1
        # A root that was taken back counts no longer, also for a connection that is open.
        path.write_bytes(second.certificate_pem)
        caplog.set_level("INFO")
        with pytest.raises(AuthorityUnavailableError):
            await issued(client)
        assert caplog.text.count("the roots of the authority's TLS can be used again") == 1
    async with (
        world.running(tls=second) as authority,
        client_of(world, file, authority.port) as client,
    ):
        await issued(client)


@pytest.mark.parametrize("form", FORMS)
async def test_a_root_file_counts_in_every_form_that_is_read(form: str, tmp_path: Path) -> None:
    """gRPC reads fewer forms of PEM; it skipped the first root after a byte order mark."""
    world, served = World(), tls()
    path = tmp_path / "root.pem"
    path.write_bytes(FORMS[form](served.certificate_pem + tls().certificate_pem))
    async with (
        world.running(tls=served) as authority,
        client_of(world, RootFile(path), authority.port) as client,
    ):
        await issued(client)


def root_file_in(folder: Path) -> tuple[Path, RootFile]:
    """A file with a root, and its follower."""
    path = folder / "root.pem"
    path.write_bytes(tls().certificate_pem)
    return path, RootFile(path)


async def test_several_may_wait_for_a_root_file_at_once(tmp_path: Path) -> None:
    path, file = root_file_in(tmp_path)
    fresh = tls().certificate_pem
    path.write_bytes(fresh)
    assert await asyncio.gather(*(file.current() for _ in range(3))) == [fresh] * 3


async def test_where_there_is_no_thread_the_roots_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, file = root_file_in(tmp_path)
    with monkeypatch.context() as patched:
        give_no_more_threads(patched)
        assert await file.current() == path.read_bytes()


async def test_a_root_file_that_does_not_answer_takes_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, file = root_file_in(tmp_path)
    before = await file.current()
    answers, asked = threading.Event(), []

    def hang(path: Path) -> bytes:
        asked.append(path)
        answers.wait()
        return path.read_bytes()

    monkeypatch.setattr(root_file, "read_roots", hang)
    monkeypatch.setattr(root_file, "ANSWER_SECONDS", 0.02)
    for _ in range(3):
        assert await file.current() == before
    assert len(asked) == 1
    path.write_bytes(tls().certificate_pem)
    answers.set()
    while await file.current() == before:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("found", ["other roots", "nothing"])
async def test_a_reading_for_which_nobody_waited_counts_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    """Who asked was cancelled; the file was replaced before somebody asked again."""
    path, file = root_file_in(tmp_path)
    answers, asked, read = threading.Event(), asyncio.Event(), root_file.read_roots
    loop = asyncio.get_running_loop()

    def slow(path: Path) -> bytes:
        loop.call_soon_threadsafe(asked.set)
        assert answers.wait(10)
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(root_file, "read_roots", slow)
        asking = asyncio.create_task(file.current())
        await asked.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        path.write_bytes(tls().certificate_pem if found == "other roots" else b"")
        answers.set()
        reading = file._reading._running
        assert reading is not None
        await asyncio.wait((reading,), timeout=10)
    newest = tls().certificate_pem
    path.write_bytes(newest)
    assert await file.current() == newest


@pytest.mark.parametrize("content", [b"", b"PEM", b"-----BEGIN CERTIFICATE-----\nMIIB\n"])
def test_a_root_file_that_cannot_be_used_ends_the_start(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "root.pem"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"root\.pem"):
        RootFile(path)


def pair(key: Any) -> TlsIdentity:
    """Any key with a certificate for it."""
    name = common_name("x")
    now = SystemClock().now().wall
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 5)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return TlsIdentity(
        certificate_pem=made.public_bytes(Encoding.PEM),
        key_pem=pem,
        key_digest=b"",
        not_after=now,
    )


def test_a_key_with_which_no_client_can_talk_ends_the_start(tmp_path: Path) -> None:
    write(tmp_path, pair(ed25519.Ed25519PrivateKey.generate()))
    with pytest.raises(ConfigurationError, match=r"tls\.key: .* is an Ed25519 key"):
        followed(tmp_path)


def test_a_chain_that_openssl_refuses_ends_the_start(tmp_path: Path) -> None:
    identity, weak = tls(), pair(rsa.generate_private_key(65537, 1024))
    write(tmp_path, identity)
    (tmp_path / "tls.crt").write_bytes(identity.certificate_pem + weak.certificate_pem)
    with pytest.raises(ConfigurationError, match=r"tls\.certificate: .* OpenSSL does not accept"):
        followed(tmp_path)


async def test_a_key_file_in_another_form_of_pem_is_served(tmp_path: Path) -> None:
    identity = tls()
    write(tmp_path, identity)
    indented = b"".join(b"  " + line for line in identity.key_pem.splitlines(keepends=True))
    (tmp_path / "tls.key").write_bytes(b"\xef\xbb\xbf" + indented)
    async with World().running(tls=followed(tmp_path)) as authority:
        assert await shown(authority.port) == identity.certificate_pem


async def test_a_replica_whose_key_is_of_another_kind_counts_as_one_that_is_down(
    tmp_path: Path,
) -> None:
    write(tmp_path, pair(ec.generate_private_key(ec.SECP521R1())))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(AuthorityUnavailableError, match="elliptic curve secp521r1"):
            await connect((f"127.0.0.1:{port}",), AttestedTls(), seconds=10)
