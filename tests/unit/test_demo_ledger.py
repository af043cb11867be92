from datetime import UTC, datetime, timedelta

from sds.demo.ledger import PeerCertificate, RotationLedger

NOW = datetime(2026, 1, 1, tzinfo=UTC)
IDS = {"client": "spiffe://t/client", "server": "spiffe://t/server"}


def seen(client: str, server: str) -> dict[str, PeerCertificate]:
    return {
        name: PeerCertificate(spiffe_id=IDS[name], serial=serial, not_after=NOW)
        for name, serial in {"client": client, "server": server}.items()
    }


def test_a_rotation_counts_only_when_traffic_shows_a_new_serial() -> None:
    ledger = RotationLedger(IDS)
    assert ledger.succeeded(seen("1", "a"), at=NOW) == []
    assert ledger.succeeded(seen("1", "a"), at=NOW) == []
    ledger.arrived("2", NOW)
    assert not ledger.reached(1)
    (rotated,) = ledger.succeeded(seen("2", "a"), at=NOW + timedelta(milliseconds=30))
    assert (rotated.workload, rotated.serial, rotated.seen_after_ms) == ("client", "2", 30.0)
    assert ledger.rotations() == {"client": 1, "server": 0}
    assert not ledger.reached(1)
    ledger.arrived("b", NOW)
    assert len(ledger.succeeded(seen("2", "b"), at=NOW)) == 1
    assert ledger.reached(1)
    assert not ledger.reached(2)
    assert (ledger.requests, ledger.failed) == (4, 0)


def test_a_rotation_that_is_seen_before_its_arrival_is_heard_of_is_told_then() -> None:
    """The agent's log and the answer come by two ways, and either may be read first."""
    ledger = RotationLedger(IDS)
    ledger.succeeded(seen("1", "a"), at=NOW)
    assert ledger.succeeded(seen("2", "b"), at=NOW + timedelta(milliseconds=30)) == []
    assert ledger.reached(1)
    rotated = ledger.arrived("2", NOW)
    assert rotated is not None
    assert (rotated.workload, rotated.serial, rotated.seen_after_ms) == ("client", "2", 30.0)
    assert ledger.workloads["client"].slowest_ms == 30.0
    assert ledger.arrived("2", NOW) is None
    (never,) = ledger.without_arrival()
    assert (never.workload, never.serial, never.seen_after_ms) == ("server", "b", None)
    assert ledger.without_arrival() == []


def test_an_answer_that_was_on_its_way_with_the_old_serial_is_no_rotation() -> None:
    ledger = RotationLedger(IDS)
    for serial in ("1", "2", "1", "2"):
        ledger.succeeded(seen(serial, "a"), at=NOW)
    assert ledger.rotations()["client"] == 1


def test_failures_and_wrong_identities_are_told() -> None:
    ledger = RotationLedger(IDS)
    ledger.failure()
    assert (ledger.requests, ledger.failed) == (1, 1)
    stranger = {"client": PeerCertificate(spiffe_id="spiffe://t/x", serial="1", not_after=NOW)}
    assert list(ledger.wrong_identities(stranger)) == [
        "the client showed 'spiffe://t/x', not 'spiffe://t/client'"
    ]
    assert list(ledger.wrong_identities(seen("1", "2"))) == []


def test_the_slowest_push_is_kept() -> None:
    ledger = RotationLedger(IDS)
    ledger.succeeded(seen("1", "a"), at=NOW)
    for serial, milliseconds in (("2", 30), ("3", 10)):
        ledger.arrived(serial, NOW)
        ledger.succeeded(seen(serial, "a"), at=NOW + timedelta(milliseconds=milliseconds))
    assert ledger.workloads["client"].slowest_ms == 30.0
