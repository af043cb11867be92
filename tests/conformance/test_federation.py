"""Bundles of other trust domains, over real TLS, into a real store."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import ssl
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from sds import faults
from sds.clock import SystemClock
from sds.errors import BundleError, ConfigurationError, SdsError
from sds.federation import document, endpoint
from sds.federation.endpoint import BundleServer
from sds.federation.refresh import BundleSource, Federation, next_wait
from sds.federation.serve import bundle_documents
from sds.identity import SpiffeId, TrustDomain
from sds.pki import certificate_der, certificate_pem
from sds.secrets.store import Change, SecretStore
from tests.support.istio_ca import Issuer, _leaf
from tests.support.no_threads import give_no_more_threads
from tests.support.pem_forms import FORMS
from tests.support.web_site import site

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from datetime import datetime
    from pathlib import Path

THEIRS = TrustDomain("theirs.test")
OURS = TrustDomain("ours.test")
SERVER = SpiffeId.parse("spiffe://theirs.test/bundle")


class Observer:
    def __init__(self) -> None:
        self.failures: list[SdsError] = []
        self.good = 0
        self.gone: list[TrustDomain] = []
        self.pauses: list[timedelta] = []
        self.changed = asyncio.Event()

    def refreshed(self, trust_domain: TrustDomain, *, at: datetime, due: datetime) -> None:
        self.good += 1
        self.pauses.append(due - at)
        self.changed.set()

    def failed(self, trust_domain: TrustDomain, error: SdsError) -> None:
        self.failures.append(error)
        self.changed.set()

    def forgotten(self, trust_domain: TrustDomain) -> None:
        self.gone.append(trust_domain)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()


class Half:
    def random(self) -> float:
        return 0.5


class Peer:
    """A foreign trust domain: its roots, its bundle endpoint over TLS."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = Issuer.make("theirs")
        self.store = SecretStore()
        self.port = 0
        self.status = 200
        self.publish(self.root)

    def publish(self, *roots: Issuer) -> None:
        self.store.put_bundle(THEIRS, [certificate_der(root.certificate) for root in roots])

    def _certified(self, names: list[x509.GeneralName]) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = self.folder / "peer.pem"
        pem.write_text(
            _leaf(self.root, key.public_key(), names, timedelta(hours=1))
            + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        )
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(pem)
        (self.folder / "root.pem").write_text(self.root.pem)
        return context

    @contextlib.asynccontextmanager
    async def served_by(
        self, handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
    ) -> AsyncIterator[BundleServer]:
        """Serve an endpoint that `handler` plays, below HTTP."""
        context = self._certified([x509.DNSName("localhost")])
        async with await asyncio.start_server(handler, "127.0.0.1", 0, ssl=context) as server:
            port = server.sockets[0].getsockname()[1]
            yield BundleServer(
                url=f"https://localhost:{port}/bundle", root=self.folder / "root.pem"
            )

    @contextlib.asynccontextmanager
    async def serving(self, names: list[x509.GeneralName]) -> AsyncIterator[str]:
        made = bundle_documents(self.store, THEIRS, refresh_hint=timedelta(seconds=1))

        async def handler(request: web.Request) -> web.StreamResponse:
            if request.headers.get("User-Agent") != "attested-sds":
                return web.Response(status=403)  # as hosts of the web that know their bots
            if self.status != 200:
                return web.Response(status=self.status, headers={"Retry-After": "7"})
            body = made()
            status = 503 if body is None else 200
            return web.Response(status=status, body=body, content_type="application/json")

        application = web.Application()
        application.router.add_get("/bundle", handler)
        async with site(application, tls=self._certified(names)) as self.port:
            yield f"https://localhost:{self.port}/bundle"


@pytest.fixture
def peer(tmp_path: Path) -> Peer:
    return Peer(tmp_path)


@contextlib.asynccontextmanager
async def federating(
    *sources: BundleSource,
) -> AsyncIterator[tuple[SecretStore, Observer, Federation]]:
    store, observer = SecretStore(), Observer()

    def changed(change: Change) -> None:
        observer.changed.set()

    store.listen(changed)
    federation = Federation(
        store, sources, own=OURS, clock=SystemClock(), observer=observer, random=Half()
    )
    task = asyncio.create_task(federation.run())
    try:
        yield store, observer, federation
        assert not task.done(), task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def roots(store: SecretStore) -> tuple[bytes, ...]:
    stored = store.bundle(THEIRS)
    return () if stored is None else stored.bundle.roots


OFTEN = timedelta(seconds=1)
DNS: list[x509.GeneralName] = [x509.DNSName("localhost")]
SPIFFE: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(SERVER))]


@pytest.mark.parametrize("profile", ["https_web", "https_spiffe"])
async def test_a_bundle_arrives_changes_survives_an_outage_and_is_withdrawn(
    peer: Peer, tmp_path: Path, profile: str
) -> None:
    web_profile = profile == "https_web"
    async with peer.serving(DNS if web_profile else SPIFFE) as url:
        source = BundleSource(
            trust_domain=THEIRS,
            endpoint=BundleServer(url=url, root=tmp_path / "root.pem")
            if web_profile
            else BundleServer(url=url, spiffe_id=SERVER),
            file=None if web_profile else tmp_path / "root.pem",
            refresh=OFTEN,
        )
        async with federating(source) as (store, observer, federation):
            one = (certificate_der(peer.root.certificate),)
            await observer.until(lambda: roots(store) == one)
            assert observer.pauses[0] == timedelta(seconds=1)  # as its publisher says
            peer.publish(peer.root, Issuer.make("next"))
            await observer.until(lambda: len(roots(store)) == 2)
            peer.status = 500
            await observer.until(lambda: bool(observer.failures))
            assert "answered 500" in str(observer.failures[0])
            assert len(roots(store)) == 2
            peer.status = 200
            peer.publish(peer.root)
            await observer.until(lambda: roots(store) == one)
            federation.replace([])
            assert roots(store) == ()
            assert observer.gone == [THEIRS]


async def test_roots_that_are_given_anew_verify_the_endpoint_before_those_it_gave(
    peer: Peer, tmp_path: Path
) -> None:
    """Before, whoever had an earlier root's key went on as the endpoint until a restart."""
    async with peer.serving(SPIFFE) as url:
        endpoint = BundleServer(url=url, spiffe_id=SERVER)
        one, two = (
            BundleSource(
                trust_domain=THEIRS,
                endpoint=endpoint,
                roots=(certificate_der(each.certificate),),
                refresh=OFTEN,
            )
            for each in (peer.root, Issuer.make("after a theft"))
        )
        async with federating(one) as (store, observer, federation):
            await observer.until(lambda: roots(store) == one.roots)
            federation.replace([two])
            await observer.until(lambda: bool(observer.failures))
            assert "TLS cannot be verified" in str(observer.failures[0])
            federation.replace([dataclasses.replace(two, refresh=timedelta(seconds=9))])
            await observer.until(lambda: len(observer.failures) > 1)
            # Roots under which it is verified end that: then the newest bundle counts again.
            federation.replace([one])
            count = observer.good
            await observer.until(lambda: observer.good > count)
            assert not federation._anew


def test_our_document_is_made_once_for_each_bundle(tmp_path: Path) -> None:
    peer = Peer(tmp_path)
    made = bundle_documents(peer.store, THEIRS, refresh_hint=timedelta(seconds=1))
    first = made()
    assert first is not None
    assert made() is first
    peer.publish(peer.root, Issuer.make("another"))
    assert made() not in {first, None}


async def test_an_empty_bundle_withdraws_it(peer: Peer, tmp_path: Path) -> None:
    async with peer.serving(DNS) as url:
        endpoint = BundleServer(url=url, root=tmp_path / "root.pem")
        source = BundleSource(trust_domain=THEIRS, endpoint=endpoint, refresh=OFTEN)
        async with federating(source) as (store, observer, _):
            await observer.until(lambda: len(roots(store)) == 1)
            peer.publish()
            await observer.until(lambda: roots(store) == ())


@pytest.mark.parametrize(
    ("names", "spiffe_id", "text"),
    [
        (DNS, SERVER, "is for no SPIFFE ID, not spiffe://theirs.test/bundle"),
        (
            SPIFFE,
            SpiffeId.parse("spiffe://theirs.test/other"),
            "is for spiffe://theirs.test/bundle",
        ),
        ([*SPIFFE, x509.UniformResourceIdentifier("spiffe://theirs.test/b")], SERVER, "is for"),
        ([x509.DNSName("elsewhere")], None, "TLS cannot be verified"),
    ],
)
async def test_an_endpoint_that_is_somebody_else_gives_nothing(
    peer: Peer, tmp_path: Path, names: list[x509.GeneralName], spiffe_id: SpiffeId, text: str
) -> None:
    async with peer.serving(names) as url:
        web_root = None if spiffe_id else tmp_path / "root.pem"
        source = BundleSource(
            trust_domain=THEIRS,
            endpoint=BundleServer(url=url, spiffe_id=spiffe_id, root=web_root),
            file=tmp_path / "root.pem",
        )
        async with federating(source) as (store, observer, _):
            await observer.until(lambda: bool(observer.failures))
            assert text in str(observer.failures[0])
            assert roots(store) == ()


async def test_the_web_s_roots_and_a_foreign_root_do_not_help(peer: Peer, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_text(Issuer.make("other").pem)
    async with peer.serving(DNS) as url:
        for endpoint in (BundleServer(url=url), BundleServer(url=url, root=other)):
            source = BundleSource(trust_domain=THEIRS, endpoint=endpoint, refresh=OFTEN)
            async with federating(source) as (_, observer, _federation):
                await observer.until(lambda o=observer: bool(o.failures))  # type: ignore[misc]  # bound now
                assert "TLS cannot be verified" in str(observer.failures[0])


async def test_a_file_is_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "theirs.json"
    source = BundleSource(trust_domain=THEIRS, file=path, refresh=timedelta(seconds=1))
    async with federating(source) as (store, observer, _):
        await observer.until(lambda: len(observer.failures) >= 2)
        assert "cannot be read" in str(observer.failures[0])
        assert caplog.text.count("bundle not refreshed") == 1
        caplog.set_level("INFO")
        path.write_bytes(document.render([certificate_der(Issuer.make("a").certificate)]))
        await observer.until(lambda: len(roots(store)) == 1)
        await observer.until(lambda: "bundle refreshed again" in caplog.text)
        path.write_text("garbage")
        count = len(observer.failures)
        await observer.until(lambda: len(observer.failures) > count)
        assert len(roots(store)) == 1
        assert caplog.text.count("bundle not refreshed") == 2


async def test_where_there_is_no_thread_a_source_waits_and_no_fault_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "theirs.json"
    path.write_bytes(document.render([certificate_der(Issuer.make("a").certificate)]))
    source = BundleSource(trust_domain=THEIRS, file=path, refresh=timedelta(seconds=1))
    before = faults.counts()["federation source"]
    with monkeypatch.context() as patched:
        give_no_more_threads(patched)
        async with federating(source) as (store, observer, _):
            await observer.until(lambda: bool(observer.failures))
            patched.undo()
            assert observer.failures[0].reason == "bundle_unavailable"
            assert "thread" in str(observer.failures[0])
            await observer.until(lambda: len(roots(store)) == 1)
    assert faults.counts()["federation source"] == before


async def test_a_replica_that_lags_behind_brings_no_withdrawn_root_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = (certificate_der(Issuer.make(name).certificate) for name in ("old", "new"))
    answers = iter([(4, [old]), (5, [new]), (4, [old]), (6, [old, new])])
    last = (6, [old, new])

    def fetch(given: BundleServer, *, roots: object) -> bytes:
        del given, roots
        sequence, ders = next(answers, last)
        return json.dumps(
            json.loads(document.render(ders)) | {"spiffe_sequence": sequence}
        ).encode()

    monkeypatch.setattr(endpoint, "fetch", fetch)
    source = BundleSource(
        trust_domain=THEIRS,
        endpoint=BundleServer(url="https://a.test"),
        refresh=timedelta(seconds=1),
    )
    async with federating(source) as (store, observer, _):
        await observer.until(lambda: bool(observer.failures))
        assert observer.failures[0].reason == "bundle_older"
        assert roots(store) == (new,)
        await observer.until(lambda: len(roots(store)) == 2)


async def test_endpoints_that_hang_hold_up_no_other_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, released = threading.Semaphore(0), threading.Event()

    def hang(given: BundleServer, *, roots: object) -> bytes:
        del given, roots
        hanging.release()
        released.wait()
        return b"{}"

    monkeypatch.setattr(endpoint, "fetch", hang)
    count = 20
    stuck = [
        BundleSource(
            trust_domain=TrustDomain(f"stuck{n}.test"), endpoint=BundleServer(url="https://a.test")
        )
        for n in range(count)
    ]
    path = tmp_path / "theirs.json"
    path.write_bytes(document.render([certificate_der(Issuer.make("a").certificate)]))
    try:
        async with federating(*stuck, BundleSource(trust_domain=THEIRS, file=path)) as (
            store,
            observer,
            _,
        ):
            await observer.until(lambda: len(roots(store)) == 1)
            for _n in range(count):
                await asyncio.to_thread(hanging.acquire)
            found = [one for one in threading.enumerate() if one.name == "federation"]
            assert len(found) >= count  # the thread that read the file may be about to end
            assert all(one.daemon for one in found)  # the process's end waits for none of them
    finally:
        released.set()


def test_our_own_trust_domain_and_doubles_are_refused() -> None:
    def make(*names: str) -> Federation:
        sources = [BundleSource(trust_domain=TrustDomain(name)) for name in names]
        return Federation(
            SecretStore(),
            sources,
            own=OURS,
            clock=SystemClock(),
            observer=Observer(),
            random=Half(),
        )

    with pytest.raises(ConfigurationError, match="our own trust domain"):
        make("ours.test")
    with pytest.raises(ConfigurationError, match="twice"):
        make("a.test", "a.test")


@pytest.mark.parametrize("url", ["http://a/b", "https:///b", "https://u:p@a/b", "spiffe://a"])
def test_an_endpoint_is_an_https_url(url: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a usable URL"):
        BundleServer(url=url)


def test_waits() -> None:
    endpoint = BundleServer(url="https://a/b")
    source = BundleSource(trust_domain=THEIRS, endpoint=endpoint)
    second, minute = timedelta(seconds=1), timedelta(minutes=1)
    assert next_wait(source, hint=None, failures=0, jitter=0) == 5 * minute
    assert next_wait(source, hint=None, failures=1, jitter=0, later=60) == minute
    assert next_wait(source, hint=None, failures=1, jitter=0, later=1e6) == 5 * minute
    assert next_wait(source, hint=minute, failures=0, jitter=0) == minute
    assert next_wait(source, hint=timedelta(0), failures=0, jitter=0) == 5 * minute
    # A publisher neither has our Envoys take another bundle every second, nor keeps a bundle in
    # force for a month that it gave while somebody else had its endpoint. An operator may say so.
    assert next_wait(source, hint=timedelta(milliseconds=1), failures=0, jitter=0) == minute
    assert next_wait(source, hint=timedelta(days=7), failures=0, jitter=0) == timedelta(days=1)
    often = dataclasses.replace(source, refresh=timedelta(milliseconds=1))
    assert next_wait(often, hint=minute, failures=0, jitter=0) == second
    seldom = dataclasses.replace(source, refresh=timedelta(days=7))
    assert next_wait(seldom, hint=minute, failures=0, jitter=0) == timedelta(days=7)
    assert next_wait(source, hint=None, failures=1, jitter=1) == 2 * second
    assert next_wait(source, hint=None, failures=3, jitter=0) == 4 * second
    assert next_wait(source, hint=None, failures=99, jitter=1) == 5 * minute
    # An outage of a day is over soon, however seldom the publisher wants to be asked.
    assert next_wait(seldom, hint=None, failures=99, jitter=1) == 5 * minute


def unreadable_roots() -> list[bytes]:
    """A root whose extension repeats, one of an unknown version, one whose name is not UTF-8."""
    good = certificate_der(Issuer.make("other").certificate)
    changes = (
        (b"\x06\x03\x55\x1d\x0e", b"\x06\x03\x55\x1d\x0f"),
        (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x04"),
        (b"\x0c\x05other", b"\x0c\x05\xff\xfe\xfd\xfc\xfb"),
    )
    assert all(old in good for old, _ in changes)
    return [good.replace(old, new, 1) for old, new in changes]


def as_pem(der: bytes) -> bytes:
    return certificate_pem([der])


def as_json(der: bytes) -> bytes:
    entry = {"use": "x509-svid", "kty": "EC", "x5c": [base64.b64encode(der).decode()]}
    return json.dumps({"keys": [entry]}).encode()


@pytest.mark.parametrize("write", [as_pem, as_json])
@pytest.mark.parametrize("which", range(3))
async def test_one_unreadable_certificate_ends_nothing_and_the_last_good_bundle_stays(
    tmp_path: Path, which: int, write: Callable[[bytes], bytes]
) -> None:
    bad, good = tmp_path / "bad", tmp_path / "good"
    first = certificate_der(Issuer.make("first").certificate)
    bad.write_bytes(as_json(first))
    good.write_bytes(as_json(first))
    quick = timedelta(seconds=1)
    sources = [
        BundleSource(trust_domain=THEIRS, file=bad, refresh=quick),
        BundleSource(trust_domain=TrustDomain("others.test"), file=good, refresh=quick),
    ]
    async with federating(*sources) as (store, observer, _):
        await observer.until(lambda: len(store.bundles()) == 2)
        bad.write_bytes(write(unreadable_roots()[which]))
        await observer.until(lambda: bool(observer.failures))
        assert observer.failures[0].reason in {"bundle_malformed", "certificate_malformed"}
        assert roots(store) == (first,)
        second = certificate_der(Issuer.make("second").certificate)
        good.write_bytes(as_json(second))
        other = TrustDomain("others.test")
        await observer.until(lambda: store.bundles()[other].bundle.roots == (second,))
        bad.write_bytes(write(second))
        await observer.until(lambda: roots(store) == (second,))


async def test_what_nobody_foresaw_ends_one_source_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bundle"
    path.write_bytes(as_json(certificate_der(Issuer.make("a").certificate)))
    parse = document.parse_file

    def fails(content: bytes, *, where: str) -> document.BundleDocument:
        if content == b"unforeseen":
            raise ZeroDivisionError
        return parse(content, where=where)

    monkeypatch.setattr(document, "parse_file", fails)
    before = faults.counts()["federation source"]
    source = BundleSource(trust_domain=THEIRS, file=path, refresh=timedelta(seconds=1))
    async with federating(source) as (store, observer, _):
        await observer.until(lambda: len(roots(store)) == 1)
        path.write_bytes(b"unforeseen")
        await observer.until(lambda: bool(observer.failures))
        assert faults.counts()["federation source"] > before
        assert len(roots(store)) == 1


async def test_roots_of_a_policy_that_clients_cannot_use_are_refused() -> None:
    source = BundleSource(trust_domain=THEIRS, roots=(unreadable_roots()[0],))
    async with federating(source) as (store, observer, _):
        await observer.until(lambda: bool(observer.failures))
        assert roots(store) == ()


@pytest.mark.parametrize(
    "url",
    [
        "https://a:99999/b",
        "https://a:x/b",
        "https://" + "a" * 64 + ".test/b",
        "https://a..b/",
        "https://[::1/b",
        "https://\u0130.test/",
        "https://a b/",
        "https://a:0/",
    ],
)
def test_an_endpoint_that_can_never_be_reached_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a usable URL"):
        BundleServer(url=url)


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX: ",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",  # it ends with the connection
    ],
)
async def test_an_endpoint_that_answers_byte_by_byte_is_left(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    """Each byte comes in time, and the whole never: neither head nor body is waited for."""
    monkeypatch.setattr(endpoint, "MOST_SECONDS", 0.5)
    left = asyncio.Event()

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(beginning)
            while not writer.is_closing():  # TLS may end without an error
                writer.write(b"1")
                await writer.drain()
                await asyncio.sleep(0.01)
        except OSError:
            pass
        finally:
            left.set()
            writer.close()

    async with peer.served_by(drip) as given:
        with pytest.raises(BundleError, match="no whole answer within"):
            await asyncio.to_thread(endpoint.fetch, given, roots=())
        await left.wait()


@pytest.mark.parametrize(
    ("beginning", "again"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n"),
    ],
)
async def test_an_endpoint_that_sends_without_end_is_left(
    peer: Peer, beginning: bytes, again: bytes
) -> None:
    """What is read costs time of all, also where it is no part of the document."""
    left = asyncio.Event()

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(beginning)
            while not writer.is_closing():  # TLS may end without an error
                writer.write(again * 1_000)
                await writer.drain()
        except OSError:
            pass
        finally:
            left.set()
            writer.close()

    async with peer.served_by(flood) as given:
        with pytest.raises(BundleError, match="the answer has more than"):
            await asyncio.to_thread(endpoint.fetch, given, roots=())
        await left.wait()


async def test_an_endpoint_that_is_reached_too_late_is_asked_nothing(peer: Peer) -> None:
    """While it is dialled there is no socket to be shut, and each of its addresses takes time."""
    asked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(1):
            asked.set()
        writer.close()

    async with peer.served_by(serve) as given:
        connection = endpoint._Connection(given, endpoint._context(given, ()))
        connection.cut()
        with pytest.raises(TimeoutError, match="no whole answer"):
            await asyncio.to_thread(connection.request, "GET", "/bundle")
        connection.close()
    assert not asked.is_set()


@pytest.mark.parametrize(("status", "later"), [(429, 7.0), (503, 7.0), (500, 0.0)])
async def test_an_endpoint_that_says_later_says_when(peer: Peer, status: int, later: float) -> None:
    peer.status = status
    async with peer.serving(DNS) as url:
        given = BundleServer(url=url, root=peer.folder / "root.pem")
        with pytest.raises(BundleError, match=f"answered {status}") as caught:
            await asyncio.to_thread(endpoint.fetch, given, roots=())
    assert caught.value.later == later


@pytest.mark.parametrize("form", FORMS)
async def test_a_root_of_an_endpoint_counts_in_every_form_that_the_check_reads(
    form: str, peer: Peer
) -> None:
    async with peer.serving(DNS) as url:
        root = peer.folder / "root.pem"
        root.write_bytes(FORMS[form](root.read_bytes()))
        given = BundleServer(url=url, root=root)
        assert b"x5c" in await asyncio.to_thread(endpoint.fetch, given, roots=())
