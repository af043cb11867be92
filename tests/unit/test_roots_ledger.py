"""Which roots the bundle holds."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

from cryptography import x509

from sds.clock import Instant
from sds.pki import MAX_BUNDLE_BYTES, MAX_ROOTS
from sds.secrets.roots_ledger import Ledger
from tests.support.certificates import NOW, Wish, ca_wish, self_signed
from tests.support.refusals import refused

HOUR = timedelta(hours=1)
_CA = ca_wish("root")


def root(days: float = 1) -> bytes:
    wish = Wish(
        subject=_CA.subject,
        constraints=_CA.constraints,
        usage=_CA.usage,
        extended=(),
        not_after=NOW + timedelta(days=days),
    )
    return self_signed(wish).der


def at(hours: float = 0, *, ahead: float = 0) -> Instant:
    """So many hours from now; the wall clock is that many hours ahead."""
    passed = 1000.0 + 3600 * hours
    return Instant(wall=NOW + (hours + ahead) * HOUR, monotonic=passed, boottime=passed)


OLD, NEW = root(days=9), root(days=9)


def test_a_new_root_joins_and_the_old_one_stays() -> None:
    ledger = Ledger().vouched([OLD], at()).vouched([NEW], at(1))
    assert ledger.bundle == (OLD, NEW)


def test_an_authority_that_names_new_roots_all_the_time_reaches_a_bound() -> None:
    ledger = Ledger()
    for number in range(MAX_ROOTS):
        ledger = ledger.vouched([root()], at(number / 100))
    with refused("authority_roots", match="1 new roots; with the 64"):
        ledger.vouched([root(), ledger.bundle[0]], at(1))
    # Who names a root that is known goes on, and there is room once others have left.
    ledger = ledger.vouched([ledger.bundle[0]], at(1)).pruned(at(3), retention=HOUR)
    assert len(ledger.vouched([root()], at(3)).bundle) == 2


def test_large_roots_reach_a_bound_too() -> None:
    wish = dataclasses.replace(_CA, more=((_comment(15_000), False),))
    ledger = Ledger()
    with refused("authority_roots"):
        for number in range(MAX_BUNDLE_BYTES // 15_000 + 1):
            ledger = ledger.vouched([self_signed(wish).der], at(number))
    assert MAX_BUNDLE_BYTES - 16_000 < sum(map(len, ledger.bundle)) <= MAX_BUNDLE_BYTES


def _comment(size: int) -> x509.UnrecognizedExtension:
    """An extension of this size, which nobody knows."""
    value = b"\x04\x82" + size.to_bytes(2, "big") + bytes(size)
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), value)


def test_an_answer_without_roots_changes_nothing() -> None:
    ledger = Ledger().vouched([OLD], at())
    assert ledger.vouched([], at(1)) == ledger


def test_an_old_root_leaves_when_no_leaf_under_it_can_live() -> None:
    ledger = Ledger().vouched([OLD], at()).vouched([NEW], at(1))
    for hours, bundle in ((1, (OLD, NEW)), (2.9, (OLD, NEW)), (3.1, (NEW,))):
        pruned = ledger.pruned(at(hours), retention=3 * HOUR)
        assert pruned.bundle == bundle


def test_a_leaf_of_ours_keeps_its_root() -> None:
    ledger = Ledger().vouched([OLD], at())
    ledger = ledger.served(ledger.roots[0].fingerprint, NOW + 9 * HOUR).vouched([NEW], at(1))
    assert ledger.pruned(at(8), retention=HOUR).bundle == (OLD, NEW)
    assert ledger.pruned(at(9), retention=HOUR).bundle == (NEW,)


def test_a_silent_authority_takes_no_root_away() -> None:
    ledger = Ledger().vouched([OLD, NEW], at())
    assert ledger.pruned(at(20), retention=HOUR) is ledger


def test_a_clock_that_was_ahead_neither_takes_a_root_away_nor_leaves_one_behind() -> None:
    ledger = Ledger().vouched([OLD], at()).vouched([NEW], at(1))
    # For a moment it is two days ahead: leaves of others under the old root live for hours yet.
    assert ledger.pruned(at(1.1, ahead=48), retention=3 * HOUR) is ledger
    # The old root itself has ended by that clock, and the new one has not.
    ledger = Ledger().vouched([root(days=9), root(days=99)], at())
    assert ledger.pruned(at(1, ahead=24 * 30), retention=3 * HOUR) is ledger
    # The authority last named the old root while the clock was ahead.
    ledger = Ledger().vouched([OLD], at(ahead=48)).vouched([NEW], at(1))
    assert ledger.pruned(at(3.1), retention=3 * HOUR).bundle == (NEW,)


def test_an_expired_root_leaves_unless_it_is_the_last() -> None:
    short = root(days=0.1)
    assert Ledger().vouched([short, NEW], at()).pruned(at(3), retention=HOUR).bundle == (NEW,)
    alone = Ledger().vouched([short], at())
    assert alone.pruned(at(3), retention=HOUR) is alone
    assert Ledger().pruned(at(), retention=HOUR) == Ledger()


def test_what_is_no_certificate_is_refused() -> None:
    with refused("certificate_malformed"):
        Ledger().vouched([b"x"], at())
