"""Examining evidence refuses, and lets no error out, whatever it is given."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sds.attestation.evidence import Evidence, EvidenceKind
from sds.attestation.revocation import read_revocation_list
from sds.attestation.snp.leaf import read_leaf
from sds.attestation.snp.report import REPORT_BYTES
from sds.attestation.snp.verifier import SnpVerifier
from sds.attestation.tdx.verifier import TdxVerifier
from sds.errors import EvidenceError
from tests.support import need
from tests.support.machines import simulated

NOW = datetime(2026, 6, 1, tzinfo=UTC)
KEY = ec.generate_private_key(ec.SECP256R1()).public_key()
QUIET = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


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
