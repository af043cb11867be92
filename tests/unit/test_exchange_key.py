"""The exchange key: how it is made, kept and measured, and what a verifier makes of its proof."""

from __future__ import annotations

import dataclasses
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from sds._proto.sds.ca.v1 import ca_pb2
from sds.attestation.evidence import Evidence, ExchangeProof, ReportData
from sds.attestation.exchange_key.events import cap_event, key_event, replay
from sds.attestation.exchange_key.holding import HeldKey, KeyedAttester, hold_key
from sds.attestation.exchange_key.register import MeasurementRegister
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.tdx.verifier import TdxVerifier
from sds.exchange.wire import evidence_from_wire, evidence_to_wire, parse_request
from tests.support.intel import NOW, Intel
from tests.support.refusals import refused
from tests.support.tdx_guest import ServiceManager, SimulatedRegister, TdxGuest

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = ReportData(b"d" * 64)
PID = 4711


@pytest.fixture(scope="module")
def intel() -> Intel:
    return Intel()


@pytest.fixture(scope="module")
def collateral(intel: Intel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return intel.collateral(tmp_path_factory.mktemp("collateral") / "c")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    made = ServiceManager(tmp_path)
    yield made
    made.close()


@pytest.fixture
def register() -> SimulatedRegister:
    return SimulatedRegister()


def first_start(register: SimulatedRegister, manager: ServiceManager) -> HeldKey:
    return hold_key(register, environment=manager.environment(), pid=PID)


def restarted(
    register: SimulatedRegister, manager: ServiceManager, monkeypatch: pytest.MonkeyPatch
) -> HeldKey:
    """A start with the kept descriptors, at whatever numbers they have here."""
    copies = [os.dup(descriptor) for _, descriptor in manager.kept]
    monkeypatch.setattr("sds.service_manager._FIRST", copies[0])
    return hold_key(register, environment=manager.environment(PID), pid=PID)


def verdict(
    intel: Intel, collateral: Path, evidence: Evidence, *, required: bool = True
) -> tuple[str, dict[str, str]]:
    found = TdxVerifier(
        values=ReferenceValues.model_validate({"tdx": {"require_exchange_key": required}}),
        trusted_roots=[intel.root_der],
        collateral=collateral,
    ).examine(evidence, data=DATA, now=NOW)
    claims = dict(found.claims.attributes) if found.claims is not None else {}
    return found.error.reason if found.error else "accepted", claims


async def test_evidence_of_the_keys_holder_is_accepted(
    intel: Intel, collateral: Path, register: SimulatedRegister, manager: ServiceManager
) -> None:
    held = first_start(register, manager)
    evidence = await KeyedAttester(TdxGuest(intel, register), held).attest(DATA)
    reason, claims = verdict(intel, collateral, evidence)
    assert reason == "accepted"
    assert len(claims["exchange_key"]) == 64
    assert register.value == replay(held.events, algorithm="sha384")


async def test_a_root_pod_with_configfs_gets_evidence_that_nobody_accepts(
    intel: Intel, collateral: Path, register: SimulatedRegister, manager: ServiceManager
) -> None:
    held = first_start(register, manager)
    evidence = await TdxGuest(intel, register).attest(DATA)
    assert verdict(intel, collateral, evidence)[0] == "exchange_key_missing"
    assert verdict(intel, collateral, evidence, required=False)[0] == "accepted"
    # The agent's proof for another request is no use: the signature covers the report data.
    stolen = held.proof(b"e" * 64)
    replayed = dataclasses.replace(evidence, proof=stolen)
    assert verdict(intel, collateral, replayed)[0] == "exchange_key_signature"
    # A proof that is there counts, also if none is demanded.
    assert verdict(intel, collateral, replayed, required=False)[0] == "exchange_key_signature"


async def test_a_key_that_is_extended_after_the_cap_never_counts(
    intel: Intel, collateral: Path, tmp_path: Path
) -> None:
    register, own = SimulatedRegister(), tmp_path / "own"
    own.mkdir()
    manager, others = ServiceManager(tmp_path), ServiceManager(own)
    held = first_start(register, manager)
    # The adversary's own key, made as ours is made, on a register of its own.
    theirs = first_start(SimulatedRegister(), others)
    for event in theirs.events:
        register.extend(event)
    evidence = await TdxGuest(intel, register).attest(DATA)
    proof = theirs.proof(DATA)
    for events in (
        theirs.events,
        held.events + theirs.events,  # what the register really saw: a second cap
        held.events[:1] + theirs.events,
        (*held.events, theirs.events[0]),
        theirs.events[:1],
        (),
    ):
        claimed = dataclasses.replace(evidence, proof=dataclasses.replace(proof, events=events))
        assert verdict(intel, collateral, claimed)[0] == "exchange_key_register", events
    # And the agent's own evidence is refused from now on: something was added.
    after = dataclasses.replace(evidence, proof=held.proof(DATA))
    assert verdict(intel, collateral, after)[0] == "exchange_key_register"
    manager.close()
    others.close()


async def test_another_key_of_the_same_guest_is_refused(
    intel: Intel, collateral: Path, register: SimulatedRegister, manager: ServiceManager
) -> None:
    held = first_start(register, manager)
    other = dataclasses.replace(held, key=Ed25519PrivateKey.generate())
    evidence = await KeyedAttester(TdxGuest(intel, register), other).attest(DATA)
    assert verdict(intel, collateral, evidence)[0] == "exchange_key_signature"


@pytest.mark.parametrize(
    "changes",
    [
        {"public_key": b""},
        {"public_key": b"\x30\x00"},
        {"signature": b""},
        {"events": (b"",)},
        {"events": (cap_event(algorithm="sha384"),)},
        {"events": (b"e" * 48,) * 65},
        {"events": (b"e" * 47, cap_event(algorithm="sha384"))},
    ],
)
async def test_a_damaged_proof_is_a_refusal(
    intel: Intel,
    collateral: Path,
    register: SimulatedRegister,
    manager: ServiceManager,
    changes: dict[str, object],
) -> None:
    held = first_start(register, manager)
    evidence = await TdxGuest(intel, register).attest(DATA)
    proof = dataclasses.replace(held.proof(DATA), **changes)  # type: ignore[arg-type]
    reason, _ = verdict(intel, collateral, dataclasses.replace(evidence, proof=proof))
    assert reason in {"exchange_key_register", "exchange_key_signature"}


async def test_events_before_the_key_are_replayed(
    intel: Intel, collateral: Path, register: SimulatedRegister, manager: ServiceManager
) -> None:
    held = first_start(SimulatedRegister(), manager)
    earlier = (b"1" * 48, b"2" * 48)
    for event in (*earlier, *held.events):
        register.extend(event)
    evidence = await TdxGuest(intel, register).attest(DATA)
    proof = dataclasses.replace(held.proof(DATA), events=(*earlier, *held.events))
    known = dataclasses.replace(evidence, proof=proof)
    assert verdict(intel, collateral, known)[0] == "accepted"
    unknown = dataclasses.replace(evidence, proof=held.proof(DATA))
    assert verdict(intel, collateral, unknown)[0] == "exchange_key_register"


def test_the_key_survives_a_restart_in_a_sealed_memfd(
    register: SimulatedRegister, manager: ServiceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = first_start(register, manager)
    [(name, descriptor)] = manager.kept
    assert name == "exchange-key"
    seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    assert seals == fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    assert str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith("/memfd:")
    before = register.value
    again = restarted(register, manager, monkeypatch)
    assert (again.public_key, again.events) == (held.public_key, held.events)
    assert register.value == before, "a restart extends nothing"
    assert manager.states == ["BARRIER=1"], "a restart stores nothing again"


@pytest.mark.parametrize("extended", [0, 1])
def test_a_process_that_ended_between_two_steps_is_completed(
    manager: ServiceManager, monkeypatch: pytest.MonkeyPatch, extended: int
) -> None:
    held = first_start(SimulatedRegister(), manager)
    register = SimulatedRegister()
    for event in held.events[:extended]:
        register.extend(event)
    again = restarted(register, manager, monkeypatch)
    assert again.public_key == held.public_key
    assert register.value == replay(held.events, algorithm="sha384")


def test_a_lost_key_needs_a_restart_of_the_machine(
    register: SimulatedRegister, manager: ServiceManager
) -> None:
    first_start(register, manager)
    before = register.value
    with refused("exchange_key_lost", match="no key came with this start"):
        first_start(register, manager)
    assert register.value == before
    assert len(manager.kept) == 1


def test_a_register_that_something_else_extended_is_an_error(
    register: SimulatedRegister, manager: ServiceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_start(register, manager)
    register.extend(key_event(b"another", algorithm="sha384"))
    with refused("exchange_key_lost", match="does not show the key"):
        restarted(register, manager, monkeypatch)


def test_two_writers_at_one_moment_are_noticed(manager: ServiceManager) -> None:
    class Disturbed(SimulatedRegister):
        def extend(self, event: bytes) -> None:
            super().extend(event)
            super().extend(b"x" * 48)

    with refused("exchange_key_lost", match="at the same time"):
        first_start(Disturbed(), manager)


@pytest.mark.parametrize("content", [b"", b"s" * 31, b"s" * 33])
def test_a_descriptor_that_is_no_sealed_key_is_refused(
    register: SimulatedRegister, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    descriptor = os.memfd_create("exchange-key", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, content)
    monkeypatch.setattr("sds.service_manager._FIRST", descriptor)
    environment = {"LISTEN_PID": str(PID), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "exchange-key"}
    with refused("exchange_key_lost", match="not one with a key"):
        hold_key(register, environment=environment, pid=PID)


@pytest.mark.parametrize(
    ("address", "why"), [("", "no service manager"), ("/nowhere/at/all", "does not keep it")]
)
def test_without_a_service_manager_nothing_is_measured(
    register: SimulatedRegister, address: str, why: str
) -> None:
    with refused("exchange_key_store", match=why):
        hold_key(register, environment={"NOTIFY_SOCKET": address}, pid=PID)
    assert register.value == bytes(48)


def test_descriptors_of_another_process_are_not_ours(
    register: SimulatedRegister, manager: ServiceManager
) -> None:
    first_start(register, manager)
    with refused("exchange_key_lost"):
        hold_key(register, environment=manager.environment(PID + 1), pid=PID)


@pytest.mark.parametrize("name", ["rtmr3", "rtmr3:md5", "sha384"])
def test_a_register_needs_an_algorithm(tmp_path: Path, name: str) -> None:
    with refused("configuration", match="does not end with its algorithm"):
        MeasurementRegister(tmp_path / name)


def test_a_machine_without_the_register_says_so(tmp_path: Path) -> None:
    absent = MeasurementRegister(tmp_path / "rtmr3:sha384")
    with refused("runtime_register", match="cannot be read"):
        absent.read()
    with refused("runtime_register", match="cannot be extended"):
        absent.extend(bytes(48))
    (tmp_path / "rtmr3:sha384").write_bytes(bytes(20))
    with refused("runtime_register", match="has 20 bytes, not 48"):
        absent.read()


def test_rtmr3_cannot_be_named_beside_the_key() -> None:
    with pytest.raises(ValidationError, match="exclude each other"):
        ReferenceValues.model_validate({"tdx": {"require_exchange_key": True, "rtmr3": ["0" * 96]}})


async def test_the_proof_travels_and_is_bounded(
    intel: Intel, register: SimulatedRegister, manager: ServiceManager
) -> None:
    held = first_start(register, manager)
    evidence = await KeyedAttester(TdxGuest(intel, register), held).attest(DATA)
    message = evidence_to_wire(evidence)
    assert evidence_from_wire(message) == evidence
    assert (
        evidence_from_wire(evidence_to_wire(dataclasses.replace(evidence, proof=None))).proof
        is None
    )
    large = (
        ExchangeProof(public_key=b"k" * 129, events=(), signature=b""),
        ExchangeProof(public_key=b"", events=(b"e" * 129,), signature=b""),
        ExchangeProof(public_key=b"", events=(b"",) * 65, signature=b""),
        ExchangeProof(public_key=b"", events=(), signature=b"s" * 129),
    )
    for proof in large:
        with refused("evidence_malformed", match="exchange proof is too large"):
            evidence_from_wire(evidence_to_wire(dataclasses.replace(evidence, proof=proof)))
    many = ca_pb2.ExchangeRequest(
        certificates=ca_pb2.CertificateRequest(
            evidence=ca_pb2.Evidence(exchange_proof=ca_pb2.ExchangeProof(events=[b""] * 257))
        )
    )
    with refused("request_malformed"):
        parse_request(many.SerializeToString())
