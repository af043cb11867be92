"""Reference values of the policy in force, beside those of the configuration."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from sds.attestation.evidence import Claims, Evidence, EvidenceKind, ReportData
from sds.attestation.reference_values import ReferenceValues
from sds.clock import SystemClock
from sds.errors import ConfigurationError, EvidenceError
from sds.identity import TrustDomain
from sds.policy.holder import PolicyHolder
from sds.policy.succession import PolicySuccession
from sds.policy.verification import PolicyVerifier, Role
from tests.support.clock import FakeClock
from tests.support.policies import Signatory, document, sign, trusting

if TYPE_CHECKING:
    from typing import Any

ALICE = Signatory("alice")
ONE, TWO = "11" * 48, "22" * 48


class ByMeasurement:
    """Accepts the measurements of its reference values, or all if there are none."""

    made = 0

    def __init__(self, values: ReferenceValues) -> None:
        self.values = values
        ByMeasurement.made += 1

    def verify(self, evidence: Evidence, *, data: ReportData, now: datetime) -> Claims:
        del data, now
        measurement = evidence.report.decode()
        if self.values.measurements and measurement not in self.values.measurements:
            raise EvidenceError(f"measurement {measurement}")
        return Claims(kind=evidence.kind, measurement=measurement, simulated=True)


def accepted(verifier: PolicyVerifier) -> list[str]:
    found = []
    for measurement in (ONE, TWO):
        evidence = Evidence(kind=EvidenceKind.SEV_SNP, report=measurement.encode())
        try:
            verifier.verify(evidence, data=ReportData(b""), now=datetime.now(UTC))
            found.append(measurement)
        except EvidenceError:
            pass
    return found


@pytest.mark.parametrize("role", list(Role))
def test_the_policy_s_reference_values_hold_from_the_next_verification_on(role: Role) -> None:
    start = PolicySuccession(trust_domain=TrustDomain("example.org"), trusted=trusting(ALICE))
    holder = PolicyHolder(start, clock=SystemClock())
    verifier, narrow = (
        PolicyVerifier(holder, role=role, configured=values, make=ByMeasurement)
        for values in (ReferenceValues(), ReferenceValues(measurements=[TWO]))
    )
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()

    def publish(epoch: int, values: dict[str, Any]) -> None:
        fields = document(epoch, not_after=later, reference_values=values)
        assert holder.take(sign(fields, ALICE), origin="test").taken

    assert (accepted(verifier), accepted(narrow)) == ([ONE, TWO], [TWO])
    publish(1, {role.value: {"measurements": [ONE]}})
    assert (accepted(verifier), accepted(narrow)) == ([ONE], [])
    publish(2, {role.value: {"measurements": [ONE, TWO]}})
    assert (accepted(verifier), accepted(narrow)) == ([ONE, TWO], [TWO])
    made = ByMeasurement.made
    publish(3, {role.value: {"measurements": [ONE, TWO]}})
    accepted(verifier)
    assert ByMeasurement.made == made
    other = next(one for one in Role if one is not role)
    publish(4, {other.value: {"measurements": [ONE]}})
    assert (accepted(verifier), accepted(narrow)) == ([ONE, TWO], [TWO])


@pytest.mark.parametrize("role", list(Role))
def test_values_of_a_policy_that_is_over_still_count(role: Role) -> None:
    """Its end gives nobody a right: else, whoever sets a clock forward is an authority."""
    clock = FakeClock()
    start = PolicySuccession(trust_domain=TrustDomain("example.org"), trusted=trusting(ALICE))
    holder = PolicyHolder(start, clock=clock)
    now = clock.now().wall
    fields = document(
        1,
        not_before=(now - timedelta(hours=1)).isoformat(),
        not_after=(now + timedelta(hours=1)).isoformat(),
        reference_values={role.value: {"measurements": [ONE]}},
    )
    verifier = PolicyVerifier(holder, role=role, configured=None, make=ByMeasurement)
    demanded = [verifier.demands_evidence]
    assert accepted(verifier) == []
    assert holder.take(sign(fields, ALICE), origin="test").taken
    demanded.append(verifier.demands_evidence)
    assert accepted(verifier) == [ONE]
    clock.step(7200)
    assert holder.current is None
    demanded.append(verifier.demands_evidence)
    assert accepted(verifier) == [ONE]
    assert demanded == [False, True, True]


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("configured", [None, ReferenceValues()])
def test_values_that_cannot_be_used_never_give_way_to_earlier_ones(
    role: Role, configured: ReferenceValues | None
) -> None:
    start = PolicySuccession(trust_domain=TrustDomain("example.org"), trusted=trusting(ALICE))
    holder = PolicyHolder(start, clock=SystemClock())
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()

    def make(values: ReferenceValues) -> ByMeasurement:
        if values.measurements == [TWO]:
            raise ConfigurationError("nobody can use these")
        return ByMeasurement(values)

    verifier = PolicyVerifier(holder, role=role, configured=configured, make=make)
    for number, measurement in enumerate((TWO, ONE, TWO), start=1):
        values = {role.value: {"measurements": [measurement]}}
        fields = document(number, not_after=later, reference_values=values)
        assert holder.take(sign(fields, ALICE), origin="test").taken
        for _ in range(3):
            if measurement == ONE:
                assert accepted(verifier) == [ONE]
                continue
            with pytest.raises(ConfigurationError, match="nobody can use these"):
                accepted(verifier)
            with pytest.raises(ConfigurationError, match="nobody can use these"):
                _ = verifier.demands_evidence if configured is None else accepted(verifier)


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize(
    ("kind", "values", "match"),
    [
        ("tpm", {"pcr": {}}, r"others\.tpm: pcr"),
        ("azure-snp-vtpm", {"pcrs": {"4": ["zz"]}}, r"others\.azure-snp-vtpm: pcrs\.4"),
        ("azure-tdx-vtpm", {"exchange_key_pcr": 16}, r"others\.azure-tdx-vtpm: exchange_key_pcr"),
    ],
)
def test_a_policy_with_values_that_cannot_be_used_is_refused(
    role: Role, kind: str, values: dict[str, Any], match: str
) -> None:
    """It was in force, its first use failed, and from the second on no value of it counted."""
    start = PolicySuccession(trust_domain=TrustDomain("example.org"), trusted=trusting(ALICE))
    holder = PolicyHolder(start, clock=SystemClock())
    others = {role.value: {"measurements": [ONE], "others": {kind: values}}}
    outcome = holder.take(sign(document(1, reference_values=others), ALICE), origin="test")
    assert outcome.taken is None
    assert outcome.refusal is not None
    assert outcome.refusal.reason == "policy_malformed"
    assert re.search(match, outcome.refusal.message)
