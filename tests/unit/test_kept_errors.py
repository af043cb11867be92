"""Errors that outlive what failed: they keep nothing alive, however often they are raised."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import pytest

from sds.attestation.checks import Check, Verdict
from sds.attestation.collateral.followed_files import InForce
from sds.clock import SystemClock
from sds.errors import EvidenceError, WorkloadError
from sds.workload.cri.attestor import CriAttestor
from sds.workload.cri.pods import SeenPods
from sds.workload.cri.runtime import Runtime
from sds.workload.cri.settings import CriSettings
from sds.workload.proc import pod_roots

if TYPE_CHECKING:
    from collections.abc import Callable

LISTS = EvidenceError("a list cannot be used", reason="revocation_list")


@pytest.mark.parametrize(
    "again",
    [
        InForce(amd_error=LISTS).amd_lists,
        Verdict(
            kind="tdx",
            checks=(Check(name="revocation", found="", expected="", error=LISTS),),
            claims=None,
        ).claims_or_raise,
    ],
)
def test_a_file_that_cannot_be_used_is_said_again_and_again(again: Callable[[], object]) -> None:
    """Each stranger's evidence meets it, and its frames would have that evidence."""
    for _ in range(10):
        with pytest.raises(EvidenceError, match="a list cannot be used"):
            again()
    assert frames(LISTS) <= 2


async def test_a_container_that_is_not_understood_connects_again_and_again() -> None:
    settings, error = CriSettings(), WorkloadError("no", reason="cri_unknown_shape")
    attestor = CriAttestor(
        Runtime(settings.socket),
        SeenPods(settings, None, started_ns=0),
        settings,
        roots=pod_roots({}),
        clock=SystemClock(),
    )
    attestor._refused["6e"] = error
    for _ in range(10):
        with pytest.raises(WorkloadError, match="no"):
            await attestor._pod_of("6e")
    assert frames(error) <= 2


def frames(error: BaseException) -> int:
    return len(list(traceback.walk_tb(error.__traceback__)))
