"""Our client against an Istio authority: Istio's own where there is one, the counterpart always."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from sds._proto.istio.v1.auth.ca_pb2 import IstioCertificateResponse
from sds.authority.channel import verified_channel
from sds.authority.istio import IstioAuthority
from sds.authority.istio_settings import IstioSettings
from sds.clock import SystemClock
from sds.errors import (
    AuthorityAnswerError,
    AuthorityError,
    AuthorityRefusedError,
    AuthorityUnavailableError,
)
from sds.exchange.item import CertificateItem, IssuedChain
from sds.identity import Identity, SpiffeId
from sds.pki import read_root, verify_svid_chain
from tests.support import istio_ca
from tests.support.refusals import refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

    from sds.authority.port import Issuance

OTHER = "spiffe://cluster.local/ns/ns1/sa/other"


def csr(key: CertificateIssuerPrivateKeyTypes, uri: str = istio_ca.ACCOUNT) -> bytes:
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True
        )
        .sign(key, algorithm)
        .public_bytes(serialization.Encoding.DER)
    )


def item(
    uri: str = istio_ca.ACCOUNT,
    *,
    seconds: float = 3600,
    key: CertificateIssuerPrivateKeyTypes | None = None,
    dns_names: tuple[str, ...] = (),
) -> CertificateItem:
    return CertificateItem(
        identity=Identity(
            spiffe_id=SpiffeId.parse(uri),
            lifetime=dt.timedelta(seconds=seconds),
            dns_names=dns_names,
        ),
        csr=csr(key or ec.generate_private_key(ec.SECP256R1()), uri),
    )


def settings(endpoint: istio_ca.Endpoint, **over: object) -> IstioSettings:
    values = {
        "addresses": [endpoint.address],
        "root": str(endpoint.root),
        "token": str(endpoint.token()),
    }
    given = {name: str(v) if isinstance(v, Path) else v for name, v in over.items()}
    return IstioSettings.model_validate(values | given)


async def ask(settings: IstioSettings, *items: CertificateItem) -> Issuance:
    authority = IstioAuthority(settings, clock=SystemClock())
    try:
        return await authority.issue(items)
    finally:
        await authority.aclose()


async def ask_as_node(authority: istio_ca.IstioCA, **over: object) -> Issuance:
    """A node asks for the certificates of two of its pods."""
    endpoint = await authority.start()
    node = authority.folder / "node.token"
    node.write_text(authority.mint(sub=istio_ca.NODE_AGENT) + "\n")
    given = settings(endpoint, token=node, impersonate=True, **over)
    try:
        return await ask(given, item(OTHER), item(istio_ca.ACCOUNT))
    finally:
        await authority.stop()


async def refusal(settings: IstioSettings, wanted: CertificateItem | None = None) -> AuthorityError:
    (outcome,) = (await ask(settings, wanted or item())).outcomes
    assert isinstance(outcome, AuthorityError), outcome
    return outcome


def leaf_of(outcome: object) -> x509.Certificate:
    assert isinstance(outcome, IssuedChain), outcome
    return x509.load_der_x509_certificate(outcome.chain[0])


@pytest.fixture(params=istio_ca.kinds())
async def endpoint(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[istio_ca.Endpoint]:
    if request.param == "istio":
        yield istio_ca.reference()
        return
    authority = istio_ca.IstioCA(folder=tmp_path / "ca")
    try:
        yield await authority.start()
    finally:
        await authority.stop()


@pytest.mark.parametrize("curve", ["p256", "p384", "ed25519"])
async def test_a_chain_that_verifies_for_the_key_that_asked(
    endpoint: istio_ca.Endpoint, curve: str
) -> None:
    makers: dict[str, Callable[[], CertificateIssuerPrivateKeyTypes]] = {
        "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
    }
    key = makers[curve]()
    wanted = item(key=key)
    answer = await ask(settings(endpoint), wanted)
    leaf = leaf_of(answer.outcomes[0])
    assert len(answer.roots) == 1
    issued = answer.outcomes[0]
    assert isinstance(issued, IssuedChain)
    verified = verify_svid_chain(
        issued.chain,
        roots=answer.roots,
        identity=wanted.identity,
        public_key=key.public_key(),  # type: ignore[arg-type]  # three of the library's kinds
        now=SystemClock().now().wall,
    )
    assert verified.serial == leaf.serial_number
    lifetime = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert dt.timedelta(seconds=3600) <= lifetime <= dt.timedelta(seconds=3725)


async def test_a_batch_keeps_its_order_and_fails_one_by_one(endpoint: istio_ca.Endpoint) -> None:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(20)]
    items = [item(key=key) for key in keys]
    items[7] = CertificateItem(
        identity=items[7].identity, csr=istio_ca.break_signature(csr(keys[7]))
    )
    answer = await ask(settings(endpoint), *items)
    broken = answer.outcomes[7]
    assert isinstance(broken, AuthorityRefusedError)
    assert "INVALID_ARGUMENT" in str(broken)
    for index, key in enumerate(keys):
        if index != 7:
            assert leaf_of(answer.outcomes[index]).public_key() == key.public_key()


@pytest.mark.parametrize(
    ("name", "reason", "text"),
    [
        ("bad-aud", "authority_refused", "audience 'other'"),
        ("string-aud", "authority_refused", "not a list"),
        ("expired", "authority_refused_for_now", "expired at"),
        ("bad-key", "authority_refused_for_now", "trusts its issuer"),
        ("bad-iss", "authority_refused_for_now", "trusts its issuer"),
        ("bad-sub", "authority_refused", "'alice' is not a service account"),
    ],
)
async def test_a_bad_token_is_refused_and_explained(
    endpoint: istio_ca.Endpoint, name: str, reason: str, text: str
) -> None:
    error = await refusal(settings(endpoint, token=endpoint.token(name)))
    assert error.reason == reason
    assert text in error.advice
    assert endpoint.token(name).read_text().strip() not in f"{error!r} {error}"


async def test_a_garbage_token_is_refused(endpoint: istio_ca.Endpoint, tmp_path: Path) -> None:
    (tmp_path / "garbage").write_text("garbage")
    error = await refusal(settings(endpoint, token=tmp_path / "garbage"))
    assert "does not contain a JWT" in error.advice
    assert not error.retriable


async def test_an_unknown_cluster_is_served(endpoint: istio_ca.Endpoint) -> None:
    answer = await ask(settings(endpoint, cluster_id="nobody-knows-it"), item())
    leaf_of(answer.outcomes[0])


async def test_a_lifetime_over_the_maximum_is_refused(endpoint: istio_ca.Endpoint) -> None:
    error = await refusal(settings(endpoint), item(seconds=91 * 86400))
    assert isinstance(error, AuthorityRefusedError)
    assert error.wire_reason == "invalid_argument"
    assert "shorter lifetime" in error.advice
    assert not error.retriable


async def test_a_lifetime_under_a_second_is_not_the_default(endpoint: istio_ca.Endpoint) -> None:
    answer = await ask(settings(endpoint), item(seconds=0.5))
    leaf = leaf_of(answer.outcomes[0])
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc < dt.timedelta(seconds=130)


async def test_names_in_a_csr_are_ignored_and_the_answer_is_for_the_account(
    endpoint: istio_ca.Endpoint,
) -> None:
    error = await refusal(settings(endpoint), item(OTHER))
    assert isinstance(error, AuthorityAnswerError)
    assert f"for {istio_ca.ACCOUNT}; {OTHER} was asked for" in error.message


async def test_dns_names_are_refused_before_anything_is_asked(
    endpoint: istio_ca.Endpoint,
) -> None:
    error = await refusal(settings(endpoint), item(dns_names=("web.example",)))
    assert isinstance(error, AuthorityAnswerError)
    assert "no DNS names" in error.message


async def test_impersonation_by_an_untrusted_account_is_refused(
    endpoint: istio_ca.Endpoint,
) -> None:
    error = await refusal(settings(endpoint, impersonate=True), item(OTHER))
    assert isinstance(error, AuthorityRefusedError)
    assert error.retriable
    assert error.wire_reason == "impersonation"


async def test_the_wrong_server_name_or_root_connects_to_nobody(
    endpoint: istio_ca.Endpoint, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text(istio_ca.Issuer.make("wrong").pem)
    for name, value in (("server_name", "elsewhere.example"), ("root", wrong)):
        with pytest.raises(AuthorityUnavailableError) as caught:
            await ask(settings(endpoint, **{name: value}), item())
        named = {
            each for each in ("server_name", "root") if f"authority.{each}" in str(caught.value)
        }
        assert named == {name}


# --- what only the counterpart can be told to do --------------------------------------------------


async def test_a_trusted_node_account_gets_certificates_for_its_pods(tmp_path: Path) -> None:
    authority = istio_ca.IstioCA(folder=tmp_path)
    answer = await ask_as_node(authority, cluster_id="east")
    for outcome, uri in zip(answer.outcomes, (OTHER, istio_ca.ACCOUNT), strict=True):
        names = leaf_of(outcome).extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert names.value.get_values_for_type(x509.UniformResourceIdentifier) == [uri]
    assert [seen["clusterid"] for seen in authority.seen] == ["east", "east"]


@pytest.mark.parametrize("shape", ["separate", "one-block"])
async def test_an_intermediate_and_several_roots(tmp_path: Path, shape: str) -> None:
    next_root = istio_ca.Issuer.make("next")
    authority = istio_ca.IstioCA(
        folder=tmp_path, intermediate=True, extra_roots=(next_root,), shape=shape
    )
    endpoint = await authority.start()
    try:
        answer = await ask(settings(endpoint), item())
    finally:
        await authority.stop()
    outcome = answer.outcomes[0]
    assert isinstance(outcome, IssuedChain)
    assert len(outcome.chain) == 2
    assert len(answer.roots) == 2
    assert next_root.certificate.public_bytes(serialization.Encoding.DER) in answer.roots


async def test_the_token_and_the_root_are_read_again_when_they_change(tmp_path: Path) -> None:
    authority = istio_ca.IstioCA(folder=tmp_path / "ca")
    endpoint = await authority.start()
    good = endpoint.token().read_text()
    endpoint.token().write_text(endpoint.token("expired").read_text())
    client = IstioAuthority(settings(endpoint), clock=SystemClock())
    try:
        (refused,) = (await client.issue([item()])).outcomes
        assert isinstance(refused, AuthorityRefusedError)
        assert refused.reason == "authority_refused_for_now"
        endpoint.token().write_text(good)
        leaf_of((await client.issue([item()])).outcomes[0])
        # Half of the file of roots is written: those that were read before stay in force.
        whole = endpoint.root.read_bytes()
        endpoint.root.write_bytes(whole[: len(whole) // 2])
        leaf_of((await client.issue([item()])).outcomes[0])
        # The authority comes back with another root, which the mesh distributes as a file.
        await authority.stop()
        authority.root = istio_ca.Issuer.make("new root")
        await authority.start()
        leaf_of((await client.issue([item()])).outcomes[0])
    finally:
        await client.aclose()
        await authority.stop()


async def test_an_authority_that_is_down_is_retriable_and_the_next_address_is_used(
    tmp_path: Path, unused_address: str
) -> None:
    authority = istio_ca.IstioCA(folder=tmp_path)
    endpoint = await authority.start()
    client = IstioAuthority(
        settings(endpoint, addresses=(unused_address, endpoint.address)), clock=SystemClock()
    )
    try:
        with pytest.raises(AuthorityUnavailableError) as caught:
            await client.issue([item(), item()])
        assert caught.value.retriable
        assert unused_address in caught.value.message
        leaf_of((await client.issue([item()])).outcomes[0])
    finally:
        await client.aclose()
        await authority.stop()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "cannot be read"),
        (b"", "must contain one token"),
        (b"a b", "one token"),
        (b"a\x01b", "one token"),
        (b"\xff", "one"),
    ],
)
async def test_a_token_file_that_is_no_token(
    tmp_path: Path, unused_address: str, content: bytes | None, text: str
) -> None:
    endpoint = istio_ca.Endpoint(address=unused_address, folder=tmp_path)
    if content is not None:
        endpoint.token().write_bytes(content)
    with refused("authority_token", match=text):
        await ask(settings(endpoint), item())


@pytest.mark.parametrize(
    ("content", "text"), [(None, "cannot be read"), ("x", "no blocks of BEGIN CERTIFICATE")]
)
async def test_a_root_file_that_is_no_root(
    tmp_path: Path, unused_address: str, content: str | None, text: str
) -> None:
    endpoint = istio_ca.Endpoint(address=unused_address, folder=tmp_path)
    endpoint.token().write_text("token")
    if content is not None:
        endpoint.root.write_text(content)
    with refused("authority_root", match=text) as raised:
        await ask(settings(endpoint), item())
    # Nobody tells us when the file is mended, and to look costs the authority nothing.
    assert raised.value.retriable


@pytest.mark.parametrize("raw", [b"\xff" * 9, b"\x0a\x02\xff\xfe"])
async def test_an_answer_that_is_none_costs_one_identity(tmp_path: Path, raw: bytes) -> None:
    async def before(identity: str) -> bytes | None:
        return raw if identity == OTHER else None

    answer = await ask_as_node(istio_ca.IstioCA(folder=tmp_path, before=before))
    garbled, good = answer.outcomes
    assert isinstance(garbled, AuthorityUnavailableError)
    assert "the answer of Istio's authority" in garbled.message
    leaf_of(good)


async def test_a_root_that_cannot_be_used_costs_one_identity(tmp_path: Path) -> None:
    """Rotation takes the roots of a batch together, or none of them."""

    async def before(identity: str) -> bytes | None:
        if identity != OTHER:
            return None
        key = ec.generate_private_key(ec.SECP256R1()).public_key()
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity)]
        leaf = istio_ca._leaf(istio_ca.Issuer.make("root"), key, names, dt.timedelta(hours=1))
        return IstioCertificateResponse(cert_chain=[leaf, leaf]).SerializeToString()

    answer = await ask_as_node(istio_ca.IstioCA(folder=tmp_path, before=before))
    bad, good = answer.outcomes
    assert isinstance(bad, AuthorityAnswerError)
    leaf_of(good)
    assert all(read_root(root) for root in answer.roots)


async def test_a_batch_names_a_bounded_number_of_roots(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()

    async def before(identity: str) -> bytes:
        roots = [istio_ca.Issuer.make(f"root {number}") for number in range(40)]
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity)]
        leaf = istio_ca._leaf(roots[0], key, names, dt.timedelta(hours=1))
        chain = [leaf, "".join(root.pem for root in roots)]
        return IstioCertificateResponse(cert_chain=chain).SerializeToString()

    answer = await ask_as_node(istio_ca.IstioCA(folder=tmp_path, before=before))
    assert len(answer.roots) == 40
    (error,) = (one for one in answer.outcomes if not isinstance(one, IssuedChain))
    assert error.reason == "authority_roots"


async def test_one_identitys_failure_cuts_off_nobody_elses_call(tmp_path: Path) -> None:
    slow, down = "spiffe://cluster.local/ns/ns1/sa/sa1", "spiffe://cluster.local/ns/ns1/sa/down"
    began, failed = asyncio.Event(), asyncio.Event()

    async def before(identity: str) -> grpc.StatusCode | None:
        if identity == down:
            return grpc.StatusCode.UNAVAILABLE
        began.set()
        await failed.wait()
        return None

    first = istio_ca.IstioCA(folder=tmp_path / "ca", before=before)
    await first.start()
    node = tmp_path / "node.token"
    node.write_text(first.mint(sub=istio_ca.NODE_AGENT))
    given = settings(
        first.endpoint,
        addresses=[
            first.endpoint.address,
            first.endpoint.address.replace("127.0.0.1", "localhost"),
        ],
        token=node,
        impersonate=True,
    )
    authority = IstioAuthority(given, clock=SystemClock())
    try:
        renewal = asyncio.create_task(authority.issue([item(slow)]))
        await began.wait()
        with pytest.raises(AuthorityUnavailableError, match="not now"):
            await authority.issue([item(down)])
        failed.set()
        answer = await renewal
        assert isinstance(answer.outcomes[0], IssuedChain)
        # And the next exchange goes to the other address.
        answer = await authority.issue([item(slow)])
        assert isinstance(answer.outcomes[0], IssuedChain)
    finally:
        await authority.aclose()
        await first.stop()


async def test_calls_that_hang_are_not_followed_by_others_for_longer_than_one_may_take(
    tmp_path: Path,
) -> None:
    """Rotation gives an exchange its time as a whole: beyond it, every answer would be lost."""
    asked: list[str] = []

    async def before(identity: str) -> grpc.StatusCode | None:
        asked.append(identity)
        await asyncio.Event().wait()
        return None

    ca = istio_ca.IstioCA(folder=tmp_path / "ca", before=before)
    endpoint = await ca.start()
    try:
        with pytest.raises(AuthorityUnavailableError):
            await ask(settings(endpoint, timeout="300ms"), *(item() for _ in range(40)))
    finally:
        await ca.stop()
    assert len(asked) <= 16


async def test_identities_whose_calls_hang_keep_no_other_from_being_asked_for(
    tmp_path: Path,
) -> None:
    """They fill all turns of an exchange, but are not the first in each."""

    async def before(identity: str) -> grpc.StatusCode | None:
        if identity == OTHER:
            await asyncio.Event().wait()
        return None

    ca = istio_ca.IstioCA(folder=tmp_path / "ca", before=before)
    await ca.start()
    node = tmp_path / "node.token"
    node.write_text(ca.mint(sub=istio_ca.NODE_AGENT))
    given = settings(ca.endpoint, token=node, impersonate=True, timeout="300ms")
    authority = IstioAuthority(given, clock=SystemClock())
    batch = [item(OTHER) for _ in range(16)] + [item(istio_ca.ACCOUNT)]
    try:
        while True:
            with contextlib.suppress(AuthorityUnavailableError):
                *hanging, answered = (await authority.issue(batch)).outcomes
                if isinstance(answered, IssuedChain):
                    break
    finally:
        await authority.aclose()
        await ca.stop()
    assert all(isinstance(each, AuthorityUnavailableError) for each in hanging)


async def test_roots_that_change_during_a_call_cut_off_nothing(tmp_path: Path) -> None:
    began, changed = asyncio.Event(), asyncio.Event()

    async def before(_identity: str) -> grpc.StatusCode | None:
        began.set()
        await changed.wait()
        return None

    ca = istio_ca.IstioCA(folder=tmp_path / "ca", before=before)
    endpoint = await ca.start()
    authority = IstioAuthority(settings(endpoint), clock=SystemClock())
    try:
        renewal = asyncio.create_task(authority.issue([item()]))
        await began.wait()
        other = istio_ca.Issuer.make("another root")
        endpoint.root.write_text(endpoint.root.read_text() + other.pem)
        second = asyncio.create_task(authority.issue([item()]))
        await asyncio.sleep(0.1)
        changed.set()
        answers = await asyncio.gather(renewal, second)
        assert all(isinstance(answer.outcomes[0], IssuedChain) for answer in answers)
    finally:
        await authority.aclose()
        await ca.stop()


async def test_a_channel_that_is_closed_under_a_call_is_an_error_not_a_cancellation(
    tmp_path: Path,
) -> None:
    began = asyncio.Event()

    async def before(_identity: str) -> grpc.StatusCode | None:
        began.set()
        await asyncio.Event().wait()
        return None

    ca = istio_ca.IstioCA(folder=tmp_path / "ca", before=before)
    endpoint = await ca.start()
    authority = IstioAuthority(settings(endpoint), clock=SystemClock())
    try:
        renewal = asyncio.create_task(authority.issue([item()]))
        await began.wait()
        assert authority._line is not None
        await authority._line.channel.close()
        with pytest.raises(AuthorityUnavailableError, match="cut off"):
            await renewal
    finally:
        await ca.stop()


async def test_a_call_that_is_cancelled_stays_cancelled(tmp_path: Path) -> None:
    began = asyncio.Event()

    async def before(_identity: str) -> grpc.StatusCode | None:
        began.set()
        await asyncio.Event().wait()
        return None

    ca = istio_ca.IstioCA(folder=tmp_path / "ca", before=before)
    authority = IstioAuthority(settings(await ca.start()), clock=SystemClock())
    try:
        renewal = asyncio.create_task(authority.issue([item()]))
        await began.wait()
        renewal.cancel()
        with pytest.raises(asyncio.CancelledError):
            await renewal
    finally:
        await authority.aclose()
        await ca.stop()


async def test_a_connection_that_does_not_answer_is_not_used_again(tmp_path: Path) -> None:
    """Behind one address stand several replicas: the one that was connected may be gone."""
    silent = asyncio.Event()

    async def before(_identity: str) -> grpc.StatusCode | None:
        if silent.is_set():
            await asyncio.Event().wait()
        return None

    ca = istio_ca.IstioCA(folder=tmp_path / "ca", before=before)
    endpoint = await ca.start()
    peers: list[str] = ca.peers
    authority = IstioAuthority(settings(endpoint, timeout="500ms"), clock=SystemClock())
    try:
        await authority.issue([item()])
        silent.set()
        with pytest.raises(AuthorityUnavailableError):
            await authority.issue([item()])
        silent.clear()
        await authority.issue([item()])
        assert peers[0] == peers[1] != peers[2]
    finally:
        await authority.aclose()
        await ca.stop()


async def test_a_connection_may_take_as_long_as_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or an istiod with too much to do gets the next connection while it is busy with the first."""
    given: list[float] = []

    def noted(*values: Any, seconds: float) -> grpc.aio.Channel:
        given.append(seconds)
        return verified_channel(*values, seconds=seconds)

    monkeypatch.setattr("sds.authority.istio_line.verified_channel", noted)
    ca = istio_ca.IstioCA(folder=tmp_path / "ca")
    endpoint = await ca.start()
    try:
        assert leaf_of((await ask(settings(endpoint, timeout="37s"), item())).outcomes[0])
    finally:
        await ca.stop()
    assert given == [37.0]


async def test_a_connection_on_which_who_asked_gave_up_is_not_used_again(tmp_path: Path) -> None:
    """Rotation waits for all certificates of a batch together, and some calls wait for others."""
    silent, asked = True, asyncio.Event()

    async def before(_identity: str) -> grpc.StatusCode | None:
        asked.set()
        if silent:
            await asyncio.Event().wait()
        return None

    ca = istio_ca.IstioCA(folder=tmp_path / "ca", before=before)
    endpoint = await ca.start()
    peers: list[str] = ca.peers
    authority = IstioAuthority(settings(endpoint), clock=SystemClock())
    batch = [item() for _ in range(20)]
    try:
        attempt = asyncio.create_task(authority.issue(batch))
        await asked.wait()
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        before_it = set(peers)
        silent = False
        await authority.issue([item()])
        assert len(before_it) == 1
        assert peers[-1] not in before_it
    finally:
        await authority.aclose()
        await ca.stop()
