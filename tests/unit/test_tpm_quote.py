"""TPM quotes: what each check refuses, and that real TPMs' and swtpm's are accepted."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from sds.attestation.azure.runtime import parse_runtime
from sds.attestation.checks import Checks
from sds.attestation.evidence import ReportData
from sds.attestation.other_formats import parse_hcl
from sds.attestation.tpm import commands, device
from sds.attestation.tpm.attest import SHA256_BANK, Bank
from sds.attestation.tpm.credential import make_credential
from sds.attestation.tpm.device import Tpm, open_tpm
from sds.attestation.tpm.keys import (
    Attribute,
    parse_public,
    parse_signature,
    require_restricted_signer,
    rsa_key,
    verify_signature,
)
from sds.attestation.tpm.quote import SignedQuote, VerifiedQuote, check_quote, qualifying_data
from sds.attestation.tpm.wire import Algorithm, sized
from sds.errors import EvidenceError, EvidenceMalformedError, EvidenceUnavailableError
from tests.support import azure_vectors, made_quotes, need, software_tpm
from tests.support.node import short_folder
from tests.support.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = ReportData(bytes(range(64)))


def reasons(quote: SignedQuote, *, data: ReportData | None = DATA) -> list[str]:
    """The reasons of the checks that failed, in order."""
    checks = Checks()
    key = parse_public(made_quotes.public()).key
    verified = check_quote(checks, quote, key, data)
    failed = [check.error.reason for check in checks.done if check.error is not None]
    assert (verified is None) == bool(failed)
    return failed


def test_a_quote_over_our_data_gives_its_pcrs() -> None:
    checks = Checks()
    key = parse_public(made_quotes.public()).key
    verified = check_quote(checks, made_quotes.quote(DATA), key, DATA)
    assert isinstance(verified, VerifiedQuote)
    assert verified.pcrs == dict(enumerate(made_quotes.VALUES))
    assert (verified.bank, verified.attest.resets) == ("sha256", 4)


def test_a_quote_without_its_key_proves_nothing() -> None:
    assert check_quote(Checks(), made_quotes.quote(DATA), None, DATA) is None


def test_what_no_tpm_made_is_refused() -> None:
    said = made_quotes.attest(qualifying_data(DATA), magic=0xFF544348)
    made = made_quotes.quote(DATA)
    forged = replace(made, attest=said, signature=made_quotes.key().sign(said))
    assert reasons(forged) == ["evidence_malformed"]
    said = made_quotes.nv_attest(qualifying_data(DATA))
    other = replace(made, attest=said, signature=made_quotes.key().sign(said))
    assert reasons(other) == ["tpm_quote"]


def test_another_request_another_key_other_values() -> None:
    quote = made_quotes.quote(DATA)
    assert reasons(quote, data=ReportData(bytes(64))) == ["report_data_mismatch"]
    assert reasons(quote, data=None) == []
    other = made_quotes.attest(qualifying_data(ReportData(bytes(64))))
    assert reasons(replace(quote, signature=made_quotes.key().sign(other))) == ["signature_invalid"]
    values = bytearray(quote.values)
    values[0] ^= 1
    assert reasons(replace(quote, values=bytes(values))) == ["pcr_values"]
    # Values that give the same digest, cut at another place.
    assert reasons(replace(quote, values=quote.values + b"\0")) == ["pcr_values"]


def test_pcrs_of_one_strong_bank_only() -> None:
    weak = Bank(algorithm=Algorithm.SHA1, pcrs=SHA256_BANK.pcrs)
    for banks in ((weak,), (), (SHA256_BANK, weak), (Bank(algorithm=0x0B, pcrs=()),)):
        said = made_quotes.attest(qualifying_data(DATA), banks=banks)
        quote = SignedQuote(
            attest=said,
            signature=made_quotes.key().sign(said),
            values=b"".join(made_quotes.VALUES),
        )
        assert reasons(quote) == ["pcr_values"], banks


def test_pcr_values_of_fewer_pcrs_do_not_move() -> None:
    """A digest over the values of PCRs 0 and 1 is no digest over those of 4 and 7."""
    bank = Bank(algorithm=Algorithm.SHA256, pcrs=(4, 7))
    values = made_quotes.VALUES[:2]
    said = made_quotes.attest(qualifying_data(DATA), values=values, banks=(bank,))
    quote = SignedQuote(
        attest=said, signature=made_quotes.key().sign(said), values=b"".join(values)
    )
    checks = Checks()
    verified = check_quote(checks, quote, parse_public(made_quotes.public()).key, DATA)
    assert verified is not None
    assert verified.pcrs == {4: values[0], 7: values[1]}


@pytest.mark.parametrize(
    "wrong",
    [
        commands.AK_ATTRIBUTES & ~Attribute.RESTRICTED,
        commands.AK_ATTRIBUTES & ~Attribute.FIXED_TPM,
        commands.AK_ATTRIBUTES & ~Attribute.FIXED_PARENT,
        commands.AK_ATTRIBUTES & ~Attribute.SENSITIVE_DATA_ORIGIN,
        commands.AK_ATTRIBUTES & ~Attribute.SIGN,
        commands.AK_ATTRIBUTES | Attribute.DECRYPT,
    ],
)
def test_only_restricted_signing_keys_attest(wrong: int) -> None:
    require_restricted_signer(parse_public(made_quotes.public()))
    with refused("tpm_key"):
        require_restricted_signer(parse_public(made_quotes.public(attributes=wrong)))


def test_the_name_covers_the_attributes() -> None:
    ours = parse_public(made_quotes.public())
    other = parse_public(made_quotes.public(attributes=commands.AK_ATTRIBUTES | 1 << 10))
    assert ours.name != other.name
    assert ours.name == b"\0\x0b" + hashlib.sha256(ours.raw).digest()


@pytest.mark.parametrize("scheme", [Algorithm.RSASSA, Algorithm.RSAPSS])
def test_rsa_signatures(scheme: Algorithm) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pad = (
        padding.PKCS1v15()
        if scheme == Algorithm.RSASSA
        else padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
    )
    raw = made_quotes.rsa_signature(key.sign(b"said", pad, hashes.SHA256()), scheme=scheme)
    verify_signature(key.public_key(), parse_signature(raw), b"said")
    with refused("signature_invalid"):
        verify_signature(key.public_key(), parse_signature(raw), b"other")
    other = Algorithm.RSAPSS if scheme == Algorithm.RSASSA else Algorithm.RSASSA
    with refused("signature_invalid"):
        mixed = made_quotes.rsa_signature(raw[6:], scheme=other)
        verify_signature(key.public_key(), parse_signature(mixed), b"said")
    with refused("signature_invalid", match="does not fit"):
        verify_signature(
            key.public_key(), parse_signature(made_quotes.key().sign(b"said")), b"said"
        )


def test_weak_keys_and_hashes_are_malformed() -> None:
    with pytest.raises(EvidenceMalformedError, match="1024 bits"):
        rsa_key(1 << 1023, 65537)
    raw = b"\0\x14\0\x04" + sized(bytes(256))  # RSASSA with SHA-1
    with pytest.raises(EvidenceMalformedError, match="0x0004"):
        parse_signature(raw)


# --- real ones ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["snp/evidence-v2.json", "tdx/evidence-v1.json"])
def test_quotes_of_azures_vtpms(place: str) -> None:
    folder = need.evidence_sets() / "azure"
    document = json.loads((folder / place).read_text())
    said = document["tpm_quote"]
    hcl = parse_hcl(azure_vectors.decoded(document["hcl_report"]))
    quote = azure_vectors.quote_of(said)
    checks = Checks()
    verified = check_quote(checks, quote, parse_runtime(hcl.runtime).key, None)
    assert verified is not None, [check.error for check in checks.done]
    assert [value.hex() for value in verified.pcrs.values()] == said["pcrs"]
    assert verified.bank == "sha256"


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with software_tpm.software_tpm() as path:
        yield path


def test_a_software_tpm_quotes_what_was_extended(place: Path) -> None:
    with open_tpm(place) as tpm:
        software_tpm.extend(tpm, 8, b"e" * 32)
        key = commands.create_primary(tpm, commands.ENDORSEMENT, commands.AK_TEMPLATE)
        public = parse_public(key.public)
        require_restricted_signer(public)
        quote = commands.quote(tpm, key.handle, qualifying_data(DATA), SHA256_BANK)
    verified = check_quote(Checks(), quote, public.key, DATA)
    assert verified is not None
    assert verified.pcrs[8] == hashlib.sha256(bytes(32) + b"e" * 32).digest()
    with open_tpm(place) as tpm:
        again = commands.create_primary(tpm, commands.ENDORSEMENT, commands.AK_TEMPLATE)
        assert again.public == key.public  # the same key at every start
        assert again.handle == key.handle  # the first one was flushed


@pytest.mark.parametrize("template", [commands.EK_RSA_TEMPLATE, commands.EK_ECC_TEMPLATE])
def test_only_the_tpm_of_both_keys_opens_a_credential(place: Path, template: bytes) -> None:
    with open_tpm(place) as tpm:
        key = commands.create_primary(tpm, commands.ENDORSEMENT, commands.AK_TEMPLATE)
        endorsement = commands.create_primary(tpm, commands.ENDORSEMENT, template)
        to = parse_public(endorsement.public).key
        name = parse_public(key.public).name
        credential, secret = make_credential(to, name, b"secret" * 5)
        opened = commands.activate_credential(
            tpm,
            key=key.handle,
            endorsement=endorsement.handle,
            credential=credential,
            secret=secret,
        )
        assert opened == b"secret" * 5
        other = parse_public(made_quotes.public()).name
        credential, secret = make_credential(to, other, b"secret" * 5)
        with refused("tpm_refused"):
            commands.activate_credential(
                tpm,
                key=key.handle,
                endorsement=endorsement.handle,
                credential=credential,
                secret=secret,
            )


def read_public(tpm: Tpm, handle: int) -> bytes:
    """TPM2_ReadPublic (Part 3, section 12.4), a command without authorizations."""
    return tpm.execute(0x173, handles=(handle,)).parameters.sized()


def test_what_a_tpm_refuses_says_the_code(place: Path) -> None:
    with open_tpm(place) as tpm, refused("tpm_refused", match="0x173"):
        read_public(tpm, 0x8100_0003)


# --- a TPM that answers nonsense ------------------------------------------------------------------


class Answers:
    """Gives these answers, one after the other."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.commands: list[bytes] = []

    def transmit(self, command: bytes) -> bytes:
        self.commands.append(command)
        if not self.answers:
            raise TimeoutError("timed out")
        return self.answers.pop(0)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "answer",
    [b"", b"\x80\x01", b"\x80\x01\0\0\0\x0b\0\0\0\0", b"\x80\x01\0\0\0\x0a\0\0\x09\x02"],
)
def test_answers_that_do_not_fit_are_temporary(answer: bytes) -> None:
    with pytest.raises(EvidenceUnavailableError):
        read_public(Tpm(Answers(answer)), 1)
    with pytest.raises(EvidenceUnavailableError, match="does not answer"):
        read_public(Tpm(Answers()), 1)


def test_a_command_that_was_not_started_is_sent_again() -> None:
    later = b"\x80\x01\0\0\0\x0a\0\0\x09\x22"
    area = sized(made_quotes.public())
    done = b"\x80\x01" + (10 + len(area)).to_bytes(4, "big") + bytes(4) + area
    transport = Answers(later, later, done)
    assert read_public(Tpm(transport), 1) == made_quotes.public()
    assert len(transport.commands) == 3
    assert len(set(transport.commands)) == 1
    forever = Answers(*[later] * 50)
    with pytest.raises(EvidenceUnavailableError):
        read_public(Tpm(forever), 1)
    assert len(forever.commands) == 10


def test_pcrs_that_a_bank_does_not_have_end_the_reading() -> None:
    body = bytes(4) + bytes(4) + bytes(4)
    nothing = b"\x80\x01" + (10 + len(body)).to_bytes(4, "big") + bytes(4) + body
    with pytest.raises(EvidenceUnavailableError, match="does not give all PCRs"):
        commands.read_pcrs(Tpm(Answers(*[nothing] * 30)), SHA256_BANK)


def test_what_is_no_tpm_is_said(tmp_path: Path) -> None:
    with refused("evidence_unsupported", match="cannot be opened"):
        open_tpm(tmp_path / "tpmrm0")
    (tmp_path / "file").touch()
    with refused("evidence_unsupported", match="neither a device nor a socket"):
        open_tpm(tmp_path / "file")


def test_a_tpm_may_be_opened_when_a_descriptor_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("pathlib.Path.stat", none_left)
    with pytest.raises(EvidenceUnavailableError, match="Too many open files"):
        open_tpm(tmp_path / "tpmrm0")


def test_errors_are_ours() -> None:
    with pytest.raises(EvidenceError):
        parse_public(b"")


def test_an_answer_byte_by_byte_has_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time began again with each byte, of which an answer may have 8,192."""
    monkeypatch.setattr(device, "_TIMEOUT_SECONDS", 0.3)
    with short_folder() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "tpm"))
        listener.listen()

        def trickle() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(100)
                for byte in b"\x80\x01\0\0\x10" + bytes(95):
                    connection.sendall(bytes([byte]))
                    time.sleep(0.05)

        serving = threading.Thread(target=trickle)
        serving.start()
        with (
            pytest.raises(EvidenceUnavailableError, match="timed out"),
            open_tpm(folder / "tpm") as tpm,
        ):
            tpm.execute(0x17B)
        serving.join()
