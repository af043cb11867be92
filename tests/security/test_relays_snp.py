"""The relays again where it matters most: with SNP reports and the verifier for real ones."""

from __future__ import annotations

from typing import Any

import pytest

from sds import errors
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.snp.simulated import SimulatedMachine, SimulatedRoot
from sds.attestation.snp.verifier import SnpVerifier
from sds.ca.tls import self_signed_tls
from sds.exchange import wire
from tests.support.authority import World, configured, identity, rule, wish
from tests.support.machines import simulated
from tests.support.raw_exchange import Middle, Response, raw_stream, request
from tests.support.refusals import refused

NODE, AUTHORITY = b"node".ljust(48, b"\0"), b"authority".ljust(48, b"\0")
ONE, TWO = (wish(identity(f"/ns/a/sa/w{index}"))[1] for index in range(2))


@pytest.fixture(scope="module")
def chips() -> SimulatedRoot:
    return simulated()


def verifier(chips: SimulatedRoot, measurement: bytes, *, trusted: bool = True) -> SnpVerifier:
    values = ReferenceValues.model_validate({"measurements": [measurement.hex()]})
    return SnpVerifier(values=values, trusted_roots=[chips.ark_der] if trusted else [])


def authority(chips: SimulatedRoot, **changes: Any) -> dict[str, Any]:
    return {
        "attester": chips.machine(measurement=AUTHORITY),
        "verifier": verifier(chips, NODE),
        "policy": configured(rule(NODE.hex())),
    } | changes


async def reason_of(port: int, machine: SimulatedMachine, **changes: Any) -> str:
    async with raw_stream(port) as stream:
        nonce = (await stream.hello()).nonce
        answer = await stream.ask(await request(nonce, [ONE, TWO], machine, **changes))
    if answer.WhichOneof("response") == "certificates":
        return "issued"
    reason: str = answer.refusal.reason
    return reason


async def test_what_the_authority_says_of_reports(chips: SimulatedRoot) -> None:
    machine = chips.machine(measurement=NODE)
    world = World()
    async with world.running(**authority(chips)) as running:
        port = running.port
        assert await reason_of(port, machine) == "issued"
        assert await reason_of(port, machine, sent=[TWO, ONE]) == "report_data_mismatch"
        assert await reason_of(port, machine, sent=[ONE]) == "report_data_mismatch"
        found = {
            "another measurement": await reason_of(port, chips.machine(measurement=AUTHORITY)),
            "debug": await reason_of(port, machine.changed(policy=0x30000 | 1 << 19)),
            "VMPL": await reason_of(port, machine.changed(vmpl=1)),
        }
        async with raw_stream(port) as stream:
            challenge = await stream.hello()
            theirs = wire.evidence_from_wire(challenge.evidence)
            message = await request(challenge.nonce, [ONE], machine, evidence=theirs)
            found["the authority's own"] = (await stream.ask(message)).refusal.reason
    # Each has a reason of its own, and the journal has the same ones.
    assert len(set(found.values()) - {"evidence"}) == len(found), found
    refused = [record.reason for record in world.journal if record.reason != "issued"]
    assert refused == ["report_data_mismatch"] * 2 + list(found.values())
    # A line about evidence that is refused names it, so that a person can find whose it was.
    assert {len(record.evidence) for record in world.journal} == {64}


async def test_a_chip_under_another_root_and_a_simulation_that_is_not_configured(
    chips: SimulatedRoot,
) -> None:
    stranger = SimulatedRoot.create().machine(measurement=NODE)
    async with World().running(**authority(chips)) as running:
        foreign = await reason_of(running.port, stranger)
    strict = authority(chips, verifier=verifier(chips, NODE, trusted=False))
    async with World().running(**strict) as running:
        unconfigured = await reason_of(running.port, chips.machine(measurement=NODE))
    assert foreign == unconfigured != "issued"
    assert foreign not in {"evidence", "report_data_mismatch"}


async def test_a_report_signed_by_another_chip_than_its_certificate(chips: SimulatedRoot) -> None:
    mine, other = chips.machine(measurement=NODE), chips.machine(measurement=NODE)
    mixed = mine.changed(vcek_key=other.vcek_key)
    async with World().running(**authority(chips)) as running:
        assert await reason_of(running.port, mixed) not in {"issued", "report_data_mismatch"}


async def test_a_man_in_the_middle_and_another_authority(chips: SimulatedRoot) -> None:
    world = World()
    agent: dict[str, Any] = {
        "attester": chips.machine(measurement=NODE),
        "verifier": verifier(chips, AUTHORITY),
    }
    async with world.running(**authority(chips)) as running:
        tls = self_signed_tls()

        def claim(response: Response) -> Response:
            response.challenge.tls_spki_sha256 = tls.key_digest
            return response

        for down, reason in (
            (lambda response: response, "authority_evidence"),
            (claim, "report_data_mismatch"),
        ):
            middle = Middle(running.port, tls, down=down)
            async with middle.listening() as port, world.client(port, **agent) as client:
                with refused(reason):
                    await client.issue([ONE])
            assert [seen.WhichOneof("request") for seen in middle.seen] == ["hello"]
        async with world.client(running.port, **agent) as client:
            await client.issue([ONE])
    impostor = authority(chips, attester=chips.machine(measurement=NODE))
    async with world.running(**impostor) as running, world.client(running.port, **agent) as client:
        with pytest.raises(errors.EvidenceError, match="measurement"):
            await client.issue([ONE])
