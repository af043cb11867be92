"""Which roots the bundle holds."""

from __future__ import annotations

from datetime import timedelta

from sds.secrets.ledger import Ledger
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


OLD, NEW = root(), root()


def test_a_new_root_joins_and_the_old_one_stays() -> None:
    ledger = Ledger().vouched([OLD], NOW).vouched([NEW], NOW + HOUR)
    assert ledger.bundle == (OLD, NEW)


def test_an_answer_without_roots_changes_nothing() -> None:
    ledger = Ledger().vouched([OLD], NOW)
    assert ledger.vouched([], NOW + HOUR) == ledger


def test_an_old_root_leaves_when_no_leaf_under_it_can_live() -> None:
    ledger = Ledger().vouched([OLD], NOW).vouched([NEW], NOW + HOUR)
    for hours, bundle in ((1, (OLD, NEW)), (2.9, (OLD, NEW)), (3.1, (NEW,))):
        pruned = ledger.pruned(NOW + hours * HOUR, retention=3 * HOUR)
        assert pruned.bundle == bundle


def test_a_leaf_of_ours_keeps_its_root() -> None:
    ledger = Ledger().vouched([OLD], NOW)
    ledger = ledger.served(ledger.roots[0].fingerprint, NOW + 9 * HOUR).vouched([NEW], NOW + HOUR)
    assert ledger.pruned(NOW + 8 * HOUR, retention=HOUR).bundle == (OLD, NEW)
    assert ledger.pruned(NOW + 9 * HOUR, retention=HOUR).bundle == (NEW,)


def test_a_silent_authority_takes_no_root_away() -> None:
    ledger = Ledger().vouched([OLD, NEW], NOW)
    assert ledger.pruned(NOW + 20 * HOUR, retention=HOUR) is ledger


def test_an_expired_root_leaves_unless_it_is_the_last() -> None:
    short = root(days=0.1)
    assert Ledger().vouched([short, NEW], NOW).pruned(NOW + 3 * HOUR, retention=HOUR).bundle == (
        NEW,
    )
    alone = Ledger().vouched([short], NOW)
    assert alone.pruned(NOW + 3 * HOUR, retention=HOUR) is alone
    assert Ledger().pruned(NOW, retention=HOUR) == Ledger()


def test_what_is_no_certificate_is_refused() -> None:
    with refused("certificate_malformed"):
        Ledger().vouched([b"x"], NOW)
