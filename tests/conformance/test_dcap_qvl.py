"""TDX quotes judged by another verifier, dcap-qvl: every difference has its explanation here."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, get_args

import dcap_qvl
import pytest

from sds.attestation.evidence import Evidence, EvidenceKind
from sds.attestation.reference_values import ReferenceValues, TcbStatus
from sds.attestation.tdx.quote import HEADER_BYTES, parse_quote
from sds.attestation.tdx.verifier import TdxVerifier
from sds.errors import EvidenceError
from tests.conformance.test_evidence_sets import TDX
from tests.support import need

if TYPE_CHECKING:
    from pathlib import Path

MUTANTS = 1000
SEED = 20251125
STATUSES = list(get_args(TcbStatus))


@dataclass(frozen=True, slots=True)
class Judged:
    """What one verifier said.

    Attributes:
        accepted: whether it accepted, at any status of the TCB.
        said: the reason of the refusal.
    """

    accepted: bool
    said: str


class Set:
    """A quote and its collateral, for both verifiers."""

    def __init__(self, folder: Path) -> None:
        self.now = datetime.fromisoformat(json.loads((folder / "meta.json").read_text())["at"])
        self.quote = (folder / "quote.bin").read_bytes()
        text = (folder / "dcap-qvl.json").read_text()
        self._collateral = dcap_qvl.QuoteCollateralV3.from_json(text)
        # dcap-qvl leaves the status, and what an owner's choice weakens, to a policy.
        values = {"tcb_statuses": STATUSES, "permit_migratable": True}
        self._ours = TdxVerifier(
            values=ReferenceValues.model_validate({"tdx": values}), collateral=folder / "collateral"
        )

    def ours(self, quote: bytes) -> Judged:
        evidence = Evidence(kind=EvidenceKind.TDX, report=quote)
        verdict = self._ours.examine(evidence, data=None, now=self.now)
        return Judged(verdict.accepted, "" if verdict.error is None else str(verdict.error))

    def theirs(self, quote: bytes) -> Judged:
        try:
            dcap_qvl.verify(quote, self._collateral, int(self.now.timestamp()))
        except ValueError as error:
            return Judged(accepted=False, said=str(error))
        return Judged(accepted=True, said="")


@pytest.mark.parametrize("name", list(TDX))
def test_each_set(name: str) -> None:
    one = Set(need.evidence_sets() / "tdx" / name)
    ours, theirs = one.ours(one.quote), one.theirs(one.quote)
    if "SEPT_VE_DISABLE" in theirs.said:
        # dcap-qvl always demands it; here a policy may (`require_sept_ve_disable`).
        return
    assert ours.accepted is theirs.accepted, (ours, theirs)


def regions(quote: bytes) -> dict[str, tuple[int, int]]:
    """Parts of a quote by name: where each begins and ends."""
    parsed = parse_quote(quote)
    signed = len(parsed.signed)
    data = signed + 4
    certification = data + 128 + 6
    authentication = certification + 384 + 64
    chain = authentication + 2 + len(parsed.authentication)
    end = chain + 6 + len(parsed.pck_chain)
    return {
        "header": (0, HEADER_BYTES),
        "body": (HEADER_BYTES, signed),
        "size of signature data": (signed, data),
        "signature": (data, data + 64),
        "attestation key": (data + 64, data + 128),
        "certification type and size": (data + 128, certification),
        "QE report": (certification, certification + 384),
        "QE signature": (certification + 384, authentication),
        "authentication data": (authentication, chain),
        "type and size of the chain": (chain, chain + 6),
        "PCK chain": (chain + 6, end),
    }


def mutant(quote: bytes, source: random.Random) -> tuple[str, bytes]:
    """A quote with one change in one of its parts."""
    name, (start, end) = source.choice(list(regions(quote).items()))
    raw = bytearray(quote)
    at = source.randrange(start, end)
    change = source.choice(["bit", "byte", "zeros", "ones", "insert", "remove", "cut", "swap"])
    length = min(source.choice([1, 2, 4, 16, 32]), end - at)
    match change:
        case "bit":
            raw[at] ^= 1 << source.randrange(8)
        case "byte":
            raw[at] = source.randrange(256)
        case "zeros":
            raw[at : at + length] = bytes(length)
        case "ones":
            raw[at : at + length] = b"\xff" * length
        case "insert":
            raw[at:at] = source.randbytes(length)
        case "remove":
            del raw[at : at + length]
        case "cut":
            del raw[at:]
        case _:
            other = source.randrange(start, end)
            raw[at], raw[other] = raw[other], raw[at]
    return f"{name}: {change} at {at}", bytes(raw)


@pytest.mark.no_cover
def test_mutants() -> None:
    source = random.Random(SEED)
    names = [name for name, right in TDX.items() if right.reason == "accepted"]
    sets = [Set(need.evidence_sets() / "tdx" / name) for name in names[:6]]
    accepted = differing = 0
    for _ in range(MUTANTS):
        one = source.choice(sets)
        said, raw = mutant(one.quote, source)
        ours, theirs = one.ours(raw), one.theirs(raw)
        accepted += ours.accepted
        if ours.accepted is theirs.accepted:
            continue
        differing += 1
        # Never the other way round: what dcap-qvl refuses is not accepted here.
        assert not ours.accepted, (said, theirs.said)
        assert any(words in ours.said for words in STRICTER), (said, ours.said)
    assert accepted < MUTANTS // 10
    assert differing < MUTANTS // 10


STRICTER = (
    # Every length inside a quote fits exactly; dcap-qvl ignores bytes that are left over.
    "bytes are left over",
    # The type of the certification data is 6; dcap-qvl does not look at it.
    "certification data of type",
    # The whole chain counts, its PEM too; dcap-qvl uses a root of its own in place of the last one.
    "PCK chain",
)


def test_our_parser_refuses_with_our_errors_what_theirs_cannot_parse() -> None:
    source = random.Random(SEED + 1)
    one = Set(need.evidence_sets() / "tdx" / next(iter(TDX)))
    for _ in range(300):
        _, raw = mutant(one.quote, source)
        try:
            dcap_qvl.parse_quote(raw)
        except ValueError:
            with pytest.raises(EvidenceError):
                parse_quote(raw)
