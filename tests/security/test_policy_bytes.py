"""Every byte of a signed policy file: changed, it is refused, or it changes nothing.

What may change without a refusal is what nobody signed and nothing is read from: white space
between the JSON tokens (our own files have one newline, at the end), and, where more people signed
than must, the entries of those that are not needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sds.errors import ConfigurationError, PolicyError
from sds.policy.envelope import SignedPolicy
from sds.policy.trust import authenticate
from sds.policy.yaml_document import parse_source
from sds.settings import yamlfile
from tests.support.policies import DOMAIN, Signatory, document, sign, trusting, yaml_bytes

if TYPE_CHECKING:
    from sds.policy.threshold import TrustedKeys

ALICE, BOB, CAROL = Signatory("alice"), Signatory.ecdsa("bob"), Signatory("carol")
S = "spiffe://example.org"
WHITE_SPACE = b" \t\r\n"
DOCUMENT = document(7, allow=[{"from": f"{S}/a", "to": f"{S}/b"}])


def harmless(signed: SignedPolicy, trusted: TrustedKeys) -> list[tuple[int, int]]:
    """Positions and values of single bytes that can be changed without a refusal."""
    good = authenticate(signed, trusted=trusted, trust_domain=DOMAIN)
    found = []
    changed = bytearray(signed)
    for position, original in enumerate(signed):
        # Every single bit, and a few whole bytes that mean something in JSON and base64.
        values = {original ^ (1 << bit) for bit in range(8)} | set(b'AZ+/= \n"{}')
        for value in values - {original}:
            changed[position] = value
            try:
                policy = authenticate(
                    SignedPolicy(bytes(changed)),
                    trusted=trusted,
                    trust_domain=DOMAIN,
                )
            except PolicyError:
                continue
            assert (policy.epoch, policy.not_after) == (good.epoch, good.not_after)
            found.append((position, value))
        changed[position] = original
    return found


@pytest.mark.no_cover
@pytest.mark.parametrize("signatory", [ALICE, BOB], ids=["ed25519", "ecdsa"])
def test_every_byte_counts(signatory: Signatory) -> None:
    signed = sign(DOCUMENT, signatory)
    last = len(signed) - 1
    assert signed[last:] == b"\n"
    left = harmless(signed, trusting(signatory))
    assert {position for position, _ in left} == {last}
    assert {value for _, value in left} <= set(WHITE_SPACE)


@pytest.mark.no_cover
def test_k_of_n_needs_every_one_of_the_k() -> None:
    signed = sign(DOCUMENT, ALICE, BOB)
    left = harmless(signed, trusting(ALICE, BOB, CAROL, threshold=2))
    assert {position for position, _ in left} == {len(signed) - 1}


@pytest.mark.no_cover
def test_a_signature_that_is_not_needed_may_break() -> None:
    signed = sign(DOCUMENT, ALICE, BOB, CAROL)
    payload_ends = signed.index(b'","payloadType"')
    signatures = signed.index(b'"signatures"')
    left = harmless(signed, trusting(ALICE, BOB, CAROL, threshold=2))
    positions = {position for position, _ in left}
    # Something of the surplus signature can be changed; nothing of the document or its type can.
    assert len(positions) > 64
    assert min(positions) > signatures > payload_ends


@pytest.mark.parametrize("length", [0, 1, 10, 100, -2, -50])
def test_cut_off_files(length: int) -> None:
    signed = sign(DOCUMENT, ALICE)
    with pytest.raises(PolicyError):
        authenticate(SignedPolicy(signed[:length]), trusted=trusting(ALICE), trust_domain=DOMAIN)


@pytest.mark.no_cover
def test_a_hundred_thousand_rules() -> None:
    """Accepted where they fit into a document's size, in bounded time; refused clearly if not."""
    rules = "".join(
        f"- {{from: '{S}/a{number}', to: '{S}/b'}}\n" for number in range(100_000)
    ).encode()
    head = yaml_bytes(document(1))
    parsed = parse_source(head + b"allow:\n" + rules, what="large")
    assert len(parsed.allow) == 100_000
    with pytest.raises(ConfigurationError, match="more than"):
        parse_source(head + b"allow:\n" + rules * 2, what="too large")


@pytest.mark.parametrize(
    "text",
    [
        yaml_bytes(document(1)) + b"epoch: 2\n",
        yaml_bytes(document(1)) + b"allow:\n- {from: a, from: b, to: c}\n",
    ],
)
def test_duplicate_keys(text: bytes) -> None:
    with pytest.raises(ConfigurationError, match="appears twice"):
        parse_source(text, what="policy.yaml")


def test_anchors_that_blow_up() -> None:
    bomb = b"x0: &x0 [a,a,a,a,a,a,a,a,a,a]\n" + b"".join(
        b"x%d: &x%d [%s]\n" % (number, number, b",".join([b"*x%d" % (number - 1)] * 10))
        for number in range(1, 12)
    )
    with pytest.raises(ConfigurationError, match="aliases expanded"):
        yamlfile.parse(bomb, what="policy.yaml")
