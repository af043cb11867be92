"""Machines with a TPM: keys that policy lists, and keys that a TPM proves to have (two rounds)."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pydantic import ValidationError

from sds.attestation.build import Verification, make_attester
from sds.attestation.evidence import (
    Claims,
    Evidence,
    EvidenceKind,
    ReportData,
    answer_challenge,
)
from sds.attestation.exchange_key.holding import KeyedAttester, hold_key
from sds.attestation.recognise import describe, kind_of
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.settings import AttestationSection, VerificationSection
from sds.attestation.tpm import commands, endorsement
from sds.attestation.tpm import verifier as tpm_verifier
from sds.attestation.tpm.attester import TpmAttester
from sds.attestation.tpm.challenge import WINDOW_SECONDS, credential_for, proves
from sds.attestation.tpm.endorsement import (
    endorsement_key,
    issuers_above,
    key_digest,
    verify_endorsement,
)
from sds.attestation.tpm.issuers import IssuerFolder
from sds.attestation.tpm.keys import parse_public
from sds.attestation.tpm.parcel import Piece, pack, parts_of, unpack
from sds.attestation.tpm.register import PcrRegister
from sds.attestation.tpm.verifier import TpmValues, TpmVerifier
from sds.errors import ConfigurationError, EvidenceError
from sds.exchange.item import IssuedChain
from sds.pki import certificate_pem
from tests.support import made_quotes, software_tpm
from tests.support.authority import World, configured, items, rule, wish
from tests.support.clock import PatientClock
from tests.support.refusals import refused
from tests.support.tdx_guest import ServiceManager

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

    from sds.attestation.tpm.keys import AttestationKey

KIND = EvidenceKind("tpm")
NOW = datetime(2026, 6, 1, tzinfo=UTC)
DATA = ReportData(bytes(range(64)))
EK_USE = x509.ObjectIdentifier("2.23.133.8.1")
INDEX = 0x01C0_0002


def _named(name: str) -> x509.Name:
    # Endorsement certificates have an empty subject (EK Credential Profile, section 3.2.3).
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])


class Maker:
    """A manufacturer of TPMs, with one root."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.root = self.certificate("Root", self.key.public_key(), ca=True)

    def certificate(
        self,
        name: str,
        key: AttestationKey,
        *,
        ca: bool = False,
        use: x509.ObjectIdentifier | None = None,
        by: tuple[str, CertificateIssuerPrivateKeyTypes] | None = None,
        days: int = 3650,
        also: x509.ExtensionType | None = None,
    ) -> bytes:
        """DER of a certificate by this manufacturer, or by another key."""
        issuer, signer = by or ("Root", self.key)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(_named(issuer))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=1))
            .not_valid_after(NOW + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if use is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        if also is not None:
            builder = builder.add_extension(also, critical=True)
        return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.fixture(scope="module")
def maker() -> Maker:
    return Maker()


@pytest.fixture(scope="module")
def place(maker: Maker) -> Iterator[Path]:
    """A TPM whose manufacturer certified its endorsement key, in an index that is padded."""
    with software_tpm.software_tpm() as path:
        with software_tpm.open_tpm(path) as tpm:
            made = commands.create_primary(tpm, commands.ENDORSEMENT, commands.EK_RSA_TEMPLATE)
            key = parse_public(made.public).key
            certificate = maker.certificate("", key, use=EK_USE)
            software_tpm.define(tpm, INDEX, certificate + b"\xff" * 40)
        yield path


def values(**own: object) -> ReferenceValues:
    return ReferenceValues.model_validate({"others": {"tpm": own}})


def verifier(**own: object) -> TpmVerifier:
    return TpmVerifier(TpmValues.model_validate(own))


def pem(der: bytes) -> str:
    return certificate_pem([der]).decode()


def reason(evidence: Evidence, data: ReportData = DATA, now: datetime = NOW, **own: Any) -> str:
    try:
        verifier(**own).verify(evidence, data=data, now=now)
    except EvidenceError as error:
        return error.reason
    return "accepted"


async def test_a_key_that_policy_lists_needs_one_round(place: Path) -> None:
    attester = make_attester(AttestationSection(kind="tpm", tpm_device=place))
    assert isinstance(attester, TpmAttester)
    evidence = await attester.attest(DATA)
    claims = verifier(aks=[]).examine(evidence, data=DATA, now=NOW).claims
    assert claims is not None
    ak = claims.attributes["ak"]
    assert claims.measurement == ak
    assert reason(evidence, aks=[ak]) == "accepted"
    assert reason(evidence, aks=["00" * 32]) == "tpm_key_unknown"
    assert reason(evidence) == "tpm_key_unknown"
    assert reason(evidence, ReportData(bytes(64)), aks=[ak]) == "report_data_mismatch"
    pcr0 = claims.attributes["pcr0"]
    assert reason(evidence, aks=[ak], pcrs={"0": [pcr0]}) == "accepted"
    assert reason(evidence, aks=[ak], pcrs={"0": ["11" * 32]}) == "pcr"
    assert kind_of(evidence.report) is KIND
    assert describe(evidence.report).claims["ak_name"] == f"000b{ak}"


async def test_a_key_is_proven_to_be_in_the_tpm_of_an_endorsement_key(
    place: Path, maker: Maker
) -> None:
    attester = TpmAttester(place, PatientClock(NOW))
    own: dict[str, Any] = {"ek_roots": [pem(maker.root)]}
    evidence = await attester.attest(DATA)
    with pytest.raises(EvidenceError) as asked:
        verifier(**own).verify(evidence, data=DATA, now=NOW)
    await attester.answer_challenge(asked.value.challenge)
    again = await attester.attest(DATA)
    claims = verifier(**own).verify(again, data=DATA, now=NOW)
    ek = claims.attributes["ek"]
    assert reason(again, eks=[ek]) == "accepted"
    # The proof ages, and belongs to this pair of keys.
    later = NOW + timedelta(seconds=2 * WINDOW_SECONDS)
    assert reason(again, now=later, **own) == "credential_needed"
    other = Maker()
    assert reason(again, ek_roots=[pem(other.root)]) == "chain_untrusted"
    # Evidence that fails anyway is not asked for more.
    with pytest.raises(EvidenceError) as refusal:
        verifier(**own).verify(evidence, data=ReportData(bytes(64)), now=NOW)
    assert refusal.value.reason == "report_data_mismatch"
    verdict = verifier(**own).examine(evidence, data=ReportData(bytes(64)), now=NOW)
    challenges = [
        check.error.challenge
        for check in verdict.checks
        if check.error is not None and check.error.reason == "credential_needed"
    ]
    assert challenges == [b""]


async def test_another_key_with_somebody_elses_endorsement_certificate(
    place: Path, maker: Maker
) -> None:
    genuine = await TpmAttester(place, PatientClock(NOW)).attest(DATA)
    parts = {**parts_of(made_quotes.quote(DATA)), Piece.PUBLIC: made_quotes.public()}
    forged = replace(genuine, report=pack(parts))
    own: dict[str, Any] = {"ek_roots": [pem(maker.root)]}
    with pytest.raises(EvidenceError) as asked:
        verifier(**own).verify(forged, data=DATA, now=NOW)
    # The TPM of that certificate does not open a credential for a key that it does not have.
    with refused("tpm_refused"):
        await TpmAttester(place, PatientClock(NOW)).answer_challenge(asked.value.challenge)
    # The proof of the genuine key does not serve the forged one.
    attester = TpmAttester(place, PatientClock(NOW))
    with pytest.raises(EvidenceError) as asked:
        verifier(**own).verify(genuine, data=DATA, now=NOW)
    await attester.answer_challenge(asked.value.challenge)
    proof = unpack((await attester.attest(DATA)).report)[Piece.PROOF]
    assert reason(replace(forged, report=pack({**parts, Piece.PROOF: proof})), **own) == (
        "credential_needed"
    )
    unrestricted = made_quotes.public(attributes=commands.AK_ATTRIBUTES & ~(1 << 16))
    ak = parse_public(unrestricted).name[2:].hex()
    loose = replace(forged, report=pack({**parts, Piece.PUBLIC: unrestricted}))
    assert reason(loose, aks=[ak]) == "tpm_key"


async def test_an_endorsement_key_without_a_certificate_is_listed_by_its_digest() -> None:
    with software_tpm.software_tpm() as path:
        attester = TpmAttester(path, PatientClock(NOW))
        evidence = await attester.attest(DATA)
        assert evidence.certificates == ()
        ek = key_digest(parse_public(unpack(evidence.report)[Piece.ENDORSEMENT]).key)
        with pytest.raises(EvidenceError) as asked:
            verifier(eks=[ek]).verify(evidence, data=DATA, now=NOW)
        await answer_challenge(attester, asked.value.challenge)
        assert reason(await attester.attest(DATA), eks=[ek]) == "accepted"
        assert reason(evidence, ek_roots=[pem(Maker().root)]) == "tpm_key_unknown"


async def test_a_process_without_the_measured_key_gives_no_evidence(tmp_path: Path) -> None:
    """The second round works under an exchange key, and the register is checked."""
    manager = ServiceManager(tmp_path)
    with software_tpm.software_tpm() as path:
        register = PcrRegister(path, 13)
        held = hold_key(register, environment=manager.environment(), pid=os.getpid())
        anybody = TpmAttester(path, PatientClock(NOW))
        ours = KeyedAttester(anybody, held)
        parts = unpack((await anybody.attest(DATA)).report)
        own: dict[str, Any] = {
            "eks": [key_digest(parse_public(parts[Piece.ENDORSEMENT]).key)],
            "exchange_key_pcr": 13,
        }
        with pytest.raises(EvidenceError) as asked:
            verifier(**own).verify(await ours.attest(DATA), data=DATA, now=NOW)
        await answer_challenge(ours, asked.value.challenge)
        claims = verifier(**own).verify(await ours.attest(DATA), data=DATA, now=NOW)
        assert claims.attributes["exchange_key"] == hashlib.sha256(held.public_key).hexdigest()
        assert reason(await anybody.attest(DATA), **own) == "exchange_key_missing"
    manager.close()


async def test_an_exchange_takes_the_second_round_by_itself(
    place: Path, maker: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    attester = TpmAttester(place, PatientClock(NOW))
    # The machine's own clock: the authority verifies at its time.
    ak = (await _claims(attester)).measurement
    world = World()
    real = Verification(VerificationSection(reference_values=values(ek_roots=[pem(maker.root)])))
    changes = {"policy": configured(rule(ak)), "verifier": real.verifier()}
    async with (
        world.running(**changes) as authority,
        world.client(authority.port, attester=attester) as client,
    ):
        for _ in range(2):
            issued = await client.issue(items([wish()]))
            assert isinstance(issued.outcomes[0], IssuedChain)
    # The first round is a question, and nothing that an operator must look at.
    assert [record.reason for record in world.journal] == ["issued", "issued"]
    assert [one.message for one in caplog.records if "has not proven" in one.message] == []


async def _claims(attester: TpmAttester) -> Claims:
    evidence = await attester.attest(DATA)
    found = verifier().examine(evidence, data=DATA, now=NOW).claims
    assert found is not None
    return found


async def test_of_a_manufacturers_whole_hierarchy_only_what_is_above_the_key_is_sent(
    place: Path, maker: Maker, tmp_path: Path
) -> None:
    """An authority takes 16 certificates with evidence, and manufacturers have dozens."""
    ours = made_quotes.key().private
    others = [maker.certificate(f"CA {n}", ours.public_key(), ca=True) for n in range(40)]
    (tmp_path / "all.pem").write_bytes(certificate_pem([*others, maker.root]))
    folder = IssuerFolder(tmp_path)
    folder.require()
    evidence = await TpmAttester(place, PatientClock(), issuers=folder).attest(DATA)
    assert evidence.certificates[1:] == (maker.root,)
    assert reason(evidence, ek_roots=[pem(maker.root)]) == "credential_needed"
    # Further issuers are found by name, one above the other, each once.
    leaf = maker.certificate("", ours.public_key(), use=EK_USE, by=("CA 7", ours))
    twice = maker.certificate("CA 7", ours.public_key(), ca=True, by=("CA 9", ours))
    found = issuers_above(leaf, [*others, twice, maker.root, twice])
    assert found == (others[7], twice, others[9], maker.root)


def test_only_certificates_for_endorsement_keys_count(maker: Maker) -> None:
    key = made_quotes.key().private.public_key()
    good = maker.certificate("", key, use=EK_USE)
    assert len(verify_endorsement([good], [maker.root], now=NOW)) == 2
    ours = ec.generate_private_key(ec.SECP256R1())
    middle = maker.certificate("Middle", ours.public_key(), ca=True)
    below = maker.certificate("", key, use=EK_USE, by=("Middle", ours))
    assert len(verify_endorsement([below, middle], [maker.root], now=NOW)) == 3
    web = maker.certificate("", key, use=ExtendedKeyUsageOID.CLIENT_AUTH)
    leaf = maker.certificate("Middle", ours.public_key())
    for chain, wanted in (
        ([web], "chain_untrusted"),
        ([maker.certificate("", key)], "chain_untrusted"),
        ([maker.certificate("", key, use=EK_USE, ca=True)], "chain_untrusted"),
        ([below, leaf], "chain_untrusted"),
        ([below], "chain_untrusted"),
        ([maker.root], "chain_untrusted"),
        ([b"\x30\x00"], "certificate_malformed"),
    ):
        with refused(wanted):
            verify_endorsement(chain, [maker.root], now=NOW)
    with refused("certificate_validity"):
        verify_endorsement([good], [maker.root], now=NOW + timedelta(days=4000))


def test_a_manufacturer_that_certified_its_issuer_twice(maker: Maker) -> None:
    """One of the two certificates of an issuer's key leads to a trusted root, in any order."""
    key = made_quotes.key().private.public_key()
    ours, former = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    below = maker.certificate("", key, use=EK_USE, by=("Middle", ours))
    good = maker.certificate("Middle", ours.public_key(), ca=True)
    others = (
        maker.certificate("Middle", ours.public_key(), ca=True, by=("Former root", former)),
        maker.certificate("Middle", ours.public_key(), ca=True, days=0),
        maker.certificate("Middle", ours.public_key()),
    )
    for other in others:
        for chain in ([below, good, other], [below, other, good]):
            later = NOW + timedelta(hours=1)
            assert len(verify_endorsement(chain, [maker.root], now=later)) == 3
    with refused("certificate_validity"):
        verify_endorsement([below, others[1]], [maker.root], now=NOW + timedelta(hours=1))
    # A root that is certified anew over its key takes nothing from the other one.
    renewed = maker.certificate("Root", maker.key.public_key(), ca=True, days=0)
    for roots in ([maker.root, renewed], [renewed, maker.root]):
        chain = [below, good]
        path = verify_endorsement(chain, roots, now=NOW + timedelta(hours=1))
        assert path[-1].public_bytes(Encoding.DER) == maker.root


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
NAMES = x509.NameConstraints([x509.DirectoryName(_named("Elsewhere"))], None)
POLICIES = x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier("1.2.3"), None)])
MODEL = x509.SubjectAlternativeName([x509.DirectoryName(_named("Model"))])


@pytest.mark.parametrize(
    ("in_leaf", "in_issuer", "good"),
    [
        (MODEL, POLICIES, True),
        (UNKNOWN, None, False),
        (None, UNKNOWN, False),
        (MODEL, NAMES, False),
    ],
)
def test_critical_extensions_that_are_not_processed(
    maker: Maker,
    in_leaf: x509.ExtensionType | None,
    in_issuer: x509.ExtensionType | None,
    *,
    good: bool,
) -> None:
    """A critical extension that is not processed refuses the path (RFC 5280, section 4.2)."""
    key, ours = made_quotes.key().private.public_key(), ec.generate_private_key(ec.SECP256R1())
    middle = maker.certificate("Middle", ours.public_key(), ca=True, also=in_issuer)
    below = maker.certificate("", key, use=EK_USE, by=("Middle", ours), also=in_leaf)
    if good:
        assert len(verify_endorsement([below, middle], [maker.root], now=NOW)) == 3
        return
    with refused("chain_untrusted"):
        verify_endorsement([below, middle], [maker.root], now=NOW)


def _tried(monkeypatch: pytest.MonkeyPatch) -> list[x509.Certificate]:
    """The issuers by whose key a signature was verified, once for each."""
    issuers: list[x509.Certificate] = []

    def note(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
        issuers.append(issuer)
        return real(certificate, issuer)

    real = endorsement._issued
    monkeypatch.setattr(endorsement, "_issued", note)
    return issuers


@pytest.mark.parametrize("named", ["Loop", "Root"])
def test_keys_of_strangers_verify_nothing(
    maker: Maker, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """Their curve may make each signature cost fifty times as much; each issued each other one."""
    ours = ec.generate_private_key(ec.BrainpoolP512R1())
    key = made_quotes.key().private.public_key()
    leaf = maker.certificate("", key, use=EK_USE, by=(named, ours))
    loops = [
        maker.certificate(named, ours.public_key(), ca=True, by=(named, ours)) for _ in range(15)
    ]
    tried = _tried(monkeypatch)
    with refused("chain_untrusted"):
        verify_endorsement([leaf, *loops], [maker.root], now=NOW)
    assert {one.public_bytes(Encoding.DER) for one in tried} <= {maker.root}
    assert len(tried) <= len(loops) + 1


def test_the_search_for_a_path_is_bounded(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if a root vouches for one of them: here, each of them issued each other one."""
    ours = ec.generate_private_key(ec.SECP256R1())
    key = made_quotes.key().private.public_key()
    leaf = maker.certificate("", key, use=EK_USE, by=("Nobody", ours))
    loops = [
        maker.certificate("Loop", ours.public_key(), ca=True, by=("Loop", ours)) for _ in range(14)
    ]
    first = maker.certificate("Loop", ours.public_key(), ca=True)
    tried = _tried(monkeypatch)
    with refused("chain_untrusted"):
        verify_endorsement([leaf, first, *loops], [maker.root], now=NOW)
    assert len(loops) < len(tried) <= endorsement.MOST_TRIES


def test_a_chain_of_very_many_bytes_is_not_read(
    maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers choose the names in it: fifteen issuers of 20 KiB each took a third of a second."""
    key = made_quotes.key().private.public_key()
    leaf = maker.certificate("", key, use=EK_USE)
    monkeypatch.setattr(endorsement, "_check_use", lambda _: pytest.fail("read"))
    filling = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), bytes(20_000))
    large = maker.certificate("Middle", maker.key.public_key(), ca=True, also=filling)
    with refused("certificate_malformed", match="more than 16384"):
        verify_endorsement([leaf, large, large], [maker.root], now=NOW)


def test_not_even_the_key_of_a_large_certificate_is_read(
    maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of 31 KiB, full of constraints on names, takes 26 ms, also if only ``eks`` counts."""
    key = made_quotes.key().private.public_key()
    filling = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), bytes(20_000))
    large = maker.certificate("", key, use=EK_USE, also=filling)
    parts = {**parts_of(made_quotes.quote(DATA)), Piece.PUBLIC: made_quotes.public()}
    evidence = Evidence(kind=KIND, report=pack(parts), certificates=(large,))
    monkeypatch.setattr(tpm_verifier, "endorsement_key", lambda _: pytest.fail("read"))
    assert reason(evidence, eks=["11" * 32]) == "certificate_malformed"


def test_keys_of_unusual_numbers_verify_nothing(maker: Maker) -> None:
    """A signature by 3,072 bits and as long an exponent takes 65 ms, and strangers choose both."""
    usual = made_quotes.rsa_key().private_numbers()
    order = (usual.p - 1) * (usual.q - 1)
    exponent = next(e for e in itertools.count(2**2000 + 1, 2) if math.gcd(e, order) == 1)
    slow = rsa.RSAPrivateNumbers(
        p=usual.p,
        q=usual.q,
        d=(d := pow(exponent, -1, order)),
        dmp1=d % (usual.p - 1),
        dmq1=d % (usual.q - 1),
        iqmp=usual.iqmp,
        public_numbers=rsa.RSAPublicNumbers(exponent, usual.p * usual.q),
    ).private_key()
    key = made_quotes.key().private.public_key()
    middle = maker.certificate("Middle", slow.public_key(), ca=True)
    below = maker.certificate("", key, use=EK_USE, by=("Middle", slow))
    with refused("chain_untrusted"):
        verify_endorsement([below, middle], [maker.root], now=NOW)
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()
    for public in (slow.public_key(), short):
        with refused("evidence_malformed"):
            endorsement_key(maker.certificate("", public, use=EK_USE))


def test_a_credential_is_for_one_pair_of_keys_and_a_while() -> None:
    key = made_quotes.key().private.public_key()
    name = parse_public(made_quotes.public()).name
    assert credential_for(key, name, NOW) != credential_for(key, name, NOW)
    assert not proves(b"", key, name, NOW)
    assert not proves(bytes(32), key, name, NOW)
    # A machine without a clock of its own starts at the beginning of time.
    assert not proves(bytes(32), key, name, datetime.fromtimestamp(0, UTC))


def test_values_that_are_none_end_the_start() -> None:
    own: dict[str, Any]
    for own in ({"ek_roots": ["x"]}, {"aks": ["x"]}, {"pcrs": {"4": []}}, {"colour": "red"}):
        with pytest.raises(ConfigurationError, match=r"others\.tpm"):
            Verification(VerificationSection(reference_values=values(**own)))


@pytest.mark.parametrize("kind", ["sev-snp", "tdx", "kubernetes-token", "sgx"])
def test_values_that_nothing_would_read_are_refused(kind: str) -> None:
    with pytest.raises(ValidationError, match="others"):
        ReferenceValues.model_validate({"others": {kind: {"measurements": ["ab" * 48]}}})


async def test_evidence_of_other_kinds_answers_nothing() -> None:
    with refused("evidence_unsupported"):
        await answer_challenge(object(), b"x")
