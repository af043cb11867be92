"""Parsers of evidence let only our errors out, whatever they are given."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sds.attestation.evidence import Evidence, EvidenceKind
from sds.attestation.kinds import describe, kind_of
from sds.attestation.pem import der_certificates, der_revocation_lists
from sds.attestation.revocation import read_revocation_list
from sds.attestation.snp.certificate import Certificate
from sds.attestation.snp.leaf import read_leaf
from sds.attestation.snp.report import REPORT_BYTES
from sds.attestation.snp.simulated import SimulatedMachine
from sds.attestation.snp.verifier import SnpVerifier
from sds.attestation.tdx.chain import link_chain
from sds.attestation.tdx.collateral import signed_document
from sds.attestation.tdx.verifier import TdxVerifier
from sds.errors import EvidenceError
from tests.support import need
from tests.support.machines import simulated

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = datetime(2026, 6, 1, tzinfo=UTC)
KEY = ec.generate_private_key(ec.SECP256R1()).public_key()
QUIET = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))

PARSERS: dict[str, Callable[[bytes], object]] = {
    "certificate": Certificate.parse,
    "leaf": read_leaf,
    "revocation list": read_revocation_list,
    "pem": lambda raw: der_certificates(raw, what="x"),
    "pem lists": lambda raw: der_revocation_lists(raw, what="x"),
    "machine": SimulatedMachine.from_bytes,
    "describe": describe,
    "kind": kind_of,
    "tcb info": lambda raw: signed_document(raw, key=KEY, expected="tcbInfo", now=NOW),
    "chain": lambda raw: link_chain(raw, names=(frozenset(),), trusted=(), what="x"),
}


@pytest.mark.parametrize("name", list(PARSERS))
@QUIET
@given(raw=st.binary(max_size=600) | st.text(max_size=80).map(str.encode))
@example(raw=b"")
@example(raw=b"\x30\x80\0\0")
@example(raw=b"\x30\x84\xff\xff\xff\xff")
@example(raw=b"HCLA")
@example(raw=b'{"tcbInfo":' + b"[" * 500)
@example(raw=b'{"tcbInfo":{},"signature":"' + b"00" * 64 + b'"}')
@example(raw=b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----")
def test_anything(name: str, raw: bytes) -> None:
    with contextlib.suppress(EvidenceError):
        PARSERS[name](raw)


@QUIET
@given(data=st.data())
def test_a_changed_leaf(data: st.DataObject) -> None:
    der = bytearray(simulated().machine().certificates[0])
    for _ in range(data.draw(st.integers(1, 6))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    for parse in (read_leaf, read_revocation_list):
        with contextlib.suppress(EvidenceError):
            parse(bytes(der))


@QUIET
@given(
    report=st.binary(min_size=REPORT_BYTES, max_size=REPORT_BYTES),
    certificates=st.lists(st.binary(max_size=300), max_size=4),
)
def test_examining_any_report_refuses_it(report: bytes, certificates: list[bytes]) -> None:
    verdict = SnpVerifier().examine(
        Evidence(kind=EvidenceKind.SEV_SNP, report=report, certificates=tuple(certificates)),
        data=None,
        now=NOW,
    )
    assert not verdict.accepted
    assert all(check.found_text is not None and check.expected_text for check in verdict.checks)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_examining_any_changed_quote_lets_no_error_out(data: st.DataObject) -> None:
    quote = bytearray((need.vectors() / "tdx" / "quote-v5.dat").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        quote[data.draw(st.integers(0, len(quote) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(quote)) | st.just(len(quote)))
    verdict = TdxVerifier().examine(
        Evidence(kind=EvidenceKind.TDX, report=bytes(quote[:cut])), data=None, now=NOW
    )
    assert not verdict.accepted
    assert [check.expected_text for check in verdict.checks]
