import os
from datetime import UTC, datetime, timedelta

import pytest

from sds.attestation.evidence import REQUEST_LABEL, Evidence, report_data
from sds.attestation.snp.simulated import SimulatedMachine, SimulatedRoot
from sds.attestation.snp.verifier import SnpVerifier
from sds.errors import EvidenceError
from tests.support.refusals import refused

NOW = datetime.now(UTC)
DATA = report_data(REQUEST_LABEL, [b"nonce"])


@pytest.fixture(scope="module")
def simulated_root() -> SimulatedRoot:
    return SimulatedRoot.create()


async def evidence(machine: SimulatedMachine) -> Evidence:
    return await machine.attest(DATA)


@pytest.mark.slow
async def test_its_report_is_accepted_where_its_root_is_configured(
    simulated_root: SimulatedRoot,
) -> None:
    machine = simulated_root.machine(measurement=b"m" * 48)
    verifier = SnpVerifier(trusted_roots=[machine.ark_der])
    claims = verifier.verify(await evidence(machine), data=DATA, now=NOW)
    assert claims.simulated
    assert claims.measurement == (b"m" * 48).hex()
    assert claims.attributes["product"] == "genoa"


async def test_it_is_refused_where_its_root_is_not_configured(
    simulated_root: SimulatedRoot,
) -> None:
    shown = await evidence(simulated_root.machine())
    with refused("chain_untrusted"):
        SnpVerifier().verify(shown, data=DATA, now=NOW)


async def test_the_binding_is_checked(simulated_root: SimulatedRoot) -> None:
    machine = simulated_root.machine()
    verifier = SnpVerifier(trusted_roots=[machine.ark_der])
    shown = await evidence(machine)
    with refused("report_data_mismatch"):
        verifier.verify(shown, data=report_data(REQUEST_LABEL, [b"other"]), now=NOW)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("policy", 0x30000 | 1 << 19, "debug_allowed"),
        ("policy", 0x30000 | 1 << 18, "migration_agent"),
        ("policy", 0x10000, "reserved_bytes"),
        ("vmpl", 1, "vmpl"),
        ("key_info", 1 << 1, "masked_chip_key"),
        ("key_info", 1 << 2, "signing_key_mismatch"),
        ("signature_algo", 0, "signature_algorithm"),
        ("committed_tcb", bytes(8), "provisional_firmware"),
        ("tcb", bytes(8), "endorsement_tcb_mismatch"),
        ("chip_id", bytes(64), "endorsement_chip_mismatch"),
    ],
)
async def test_each_weak_report_is_refused_for_its_reason(
    simulated_root: SimulatedRoot, field: str, value: object, reason: str
) -> None:
    machine = simulated_root.machine().changed(**{field: value})
    verifier = SnpVerifier(trusted_roots=[machine.ark_der])
    with pytest.raises(EvidenceError) as refused:
        verifier.verify(await evidence(machine), data=DATA, now=NOW)
    assert refused.value.reason == reason


async def test_a_chain_of_the_past_or_the_future_is_refused(
    simulated_root: SimulatedRoot,
) -> None:
    machine = simulated_root.machine()
    verifier = SnpVerifier(trusted_roots=[machine.ark_der])
    shown = await evidence(machine)
    for now in (NOW - timedelta(days=30), NOW + timedelta(days=4000)):
        with pytest.raises(EvidenceError) as refused:
            verifier.verify(shown, data=DATA, now=now)
        assert refused.value.reason == "certificate_validity"


async def test_it_travels_by_a_descriptor(simulated_root: SimulatedRoot) -> None:
    machine = simulated_root.machine()
    reading, writing = os.pipe()
    os.close(writing)
    with pytest.raises(EvidenceError, match="cannot be read: File"):
        SimulatedMachine.receive(reading)
    infinite = machine.to_bytes().replace(b'"key_info": 0', b'"key_info": Infinity')
    with pytest.raises(EvidenceError, match="no simulated machine"):
        SimulatedMachine.from_bytes(infinite)
    received = SimulatedMachine.receive(machine.send())
    verifier = SnpVerifier(trusted_roots=[machine.ark_der])
    assert verifier.verify(await evidence(received), data=DATA, now=NOW).simulated


def test_a_descriptor_without_a_machine_says_so() -> None:
    descriptor = os.memfd_create("nothing")
    with pytest.raises(EvidenceError, match="no simulated machine"):
        SimulatedMachine.receive(descriptor)
    with pytest.raises(EvidenceError, match="cannot be read"):
        SimulatedMachine.receive(descriptor)


def test_its_keys_are_not_shown(simulated_root: SimulatedRoot) -> None:
    machine = simulated_root.machine()
    assert "key" not in repr(simulated_root).replace("key_info", "")
    assert "vcek_key" not in repr(machine)
