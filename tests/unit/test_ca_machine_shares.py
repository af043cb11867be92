"""One machine cannot take every stream or connection of the authority."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from sds.attestation.evidence import Claims, EvidenceKind
from sds.ca.machine_shares import MachineShares, machine_of
from tests.support.cost import assert_linear

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = 100.0


def shares(most: int) -> MachineShares[int]:
    return MachineShares(most, "streams")


def test_a_machine_with_most_of_them_leaves_an_eighth_free() -> None:
    held = shares(160)
    assert not any(held.join(number, "greedy", now=NOW) for number in range(140))
    assert held.join(140, "greedy", now=NOW) == [0]
    assert held.join(141, "modest", now=NOW) == [1]
    assert len(held) == 140
    assert not held.leave(1)


def test_machines_that_have_their_share_leave_a_little_for_one_that_has_nothing() -> None:
    """Else eight machines that were taken over would keep every other one out."""
    held = shares(160)
    for number in range(155):
        assert held.join(number, f"machine {number // 20}", now=NOW) == []
    for number in range(155, 400):
        assert len(held.join(number, f"machine {number % 8}", now=NOW)) == 1
    (gone,) = held.join(1_000, "newcomer", now=NOW)
    assert gone != 1_000
    assert len(held) == 155


def test_machines_with_few_take_every_place() -> None:
    held = shares(160)
    for number in range(160):
        assert held.join(number, f"machine {number // 8}", now=NOW) == []
    assert len(held) == 160


def test_few_places_leave_an_agent_what_it_needs() -> None:
    held = shares(3)
    assert not any(held.join(number, "agent", now=NOW) for number in range(8))
    assert held.join(8, "agent", now=NOW) == [0]


def test_a_member_joins_once() -> None:
    held = shares(160)
    held.join(1, "one", now=NOW)
    assert held.join(1, "another", now=NOW) == []
    assert held.leave(1)
    assert not held.leave(1)
    assert len(held) == 0


def test_any_order_of_changes_decides_as_a_list_would() -> None:
    chosen, most, share = random.Random(7), 80, 10
    held = shares(most)
    there: list[tuple[int, str]] = []
    for number in range(5_000):
        if there and chosen.random() < 0.3:
            gone = chosen.choice(there)
            assert held.leave(gone[0])
            there.remove(gone)
        machine = chosen.choice("aaaaaabbbcdefghijklmnop")
        ends = held.join(number, machine, now=NOW)
        there.append((number, machine))
        expected = []
        while len(there) > most - share:
            sizes: dict[str, int] = {}
            for _, one in there:
                sizes[one] = sizes.get(one, 0) + 1
            enough = share if len(there) <= most - most // 32 else 8
            largest = {one for one, size in sizes.items() if size == max(sizes.values()) > enough}
            if not largest:
                break
            # Of two that have the same, either may give way.
            oldest = next(
                (one for one in there if one[1] in largest and one[0] in ends), (None, "")
            )
            assert oldest == next(one for one in there if one[1] == oldest[1])
            there.remove(oldest)
            expected.append(oldest[0])
        assert sorted(ends) == sorted(expected)
        assert len(held) == len(there)


def test_the_log_names_the_machine_once_in_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    held = shares(16)
    for number in range(30):
        held.join(number, "chip_id 00ff", now=NOW)
    (said,) = caplog.records
    about = said.__dict__
    assert about["machine"] == "chip_id 00ff"
    assert (about["limit"], about["has"], about["share"]) == ("streams", 9, 8)
    held.join(99, "chip_id 00ff", now=NOW + 10)
    assert len(caplog.records) == 2


def test_many_machines_cost_in_proportion() -> None:
    def work(count: int) -> Callable[[], object]:
        def decide() -> None:
            held = shares(count)
            for number in range(count):
                held.join(number, f"machine {number % (count // 2) if number % 3 else 0}", now=NOW)

        return decide

    assert_linear(work, 1_000)


@pytest.mark.parametrize(
    ("kind", "attributes", "machine"),
    [
        ("sev-snp", {"chip_id": "0a" * 64}, "chip_id " + "0a" * 64),
        ("sev-snp", {"chip_id": "00" * 64}, "address 192.0.2.1"),
        ("sev-snp", {}, "address 192.0.2.1"),
        ("tdx", {"ppid": "01", "platform_instance_id": "02"}, "platform_instance_id 02"),
        ("tdx", {"ppid": "01"}, "ppid 01"),
        ("tpm", {"ak": "01", "ek": "02"}, "ek 02"),
        ("tpm", {"ak": "01"}, "ak 01"),
        ("azure-snp-vtpm", {"chip_id": "01", "vm_vmuniqueid": "A-B"}, "vm_vmuniqueid A-B"),
        ("azure-tdx-vtpm", {"ppid": "01"}, "ppid 01"),
        ("kubernetes-token", {"node": "n1"}, "node n1"),
    ],
)
def test_the_name_of_a_machine(kind: str, attributes: dict[str, str], machine: str) -> None:
    claims = Claims(
        kind=EvidenceKind(kind), measurement="n1", simulated=False, attributes=attributes
    )
    assert machine_of(claims, address="192.0.2.1") == machine
