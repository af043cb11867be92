"""What is remembered of a pod has a bound, so its author takes nobody else's identity."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from sds.workload.cri import pods as pods_module
from sds.workload.cri.pods import SeenContainer, SeenPod, SeenPods
from sds.workload.cri.runtime import DescribedContainer, Listed
from sds.workload.cri.settings import CriSettings, PodContents

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

PAUSE = f"sha256:{32 * 'ff'}"
IMAGE = f"sha256:{32 * 'aa'}"
MANY = 1_000


def described(identifier: str, *, mounts: int = 0, argument: str = "") -> DescribedContainer:
    """A container with this many volumes whose content nothing measures."""
    bound = [
        {"destination": f"/{each}", "type": "bind", "source": f"/data/{each}"}
        for each in range(mounts)
    ]
    spec = {
        "process": {"user": {}, "args": [argument]},
        "root": {},
        "mounts": bound,
        "linux": {"cgroupsPath": f"/{identifier}"},
        "annotations": {},
    }
    return DescribedContainer(pid=1, spec=spec, image="pause", pod_uid=identifier, created_at=1)


def listed(sandbox: str, identifier: str, *, name: str = "main", attempt: int = 0) -> Listed:
    return Listed(
        id=identifier, sandbox_id=sandbox, name=name, attempt=attempt, image=IMAGE, alive=True
    )


async def started(seen: SeenPods, sandbox: str) -> SeenPod:
    return await seen.add_sandbox(sandbox, described(sandbox), now_ns=1)


def listing(pod: SeenPod) -> PodContents:
    return PodContents(
        sandbox=pod.digest,
        containers=tuple({each.digest for each in pod.containers.values()}),
    )


async def test_a_pod_that_is_too_large_loses_its_own_identity_and_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, the file grew beyond what is read of it, and every pod of the node was unknown."""
    monkeypatch.setattr(pods_module, "_MAX_BYTES", 4 * pods_module.MOST_BYTES_OF_A_POD)
    file = tmp_path / "seen.json"
    seen = SeenPods(CriSettings(), file, started_ns=0)
    good = await started(seen, "good")
    await seen.add_container(good, listed("good", "g0"), described("g0"))
    bad = await started(seen, "bad")
    for number in range(40):
        identifier = f"b{number}"
        said = described(identifier, mounts=MANY)
        await seen.add_container(bad, listed("bad", identifier, name=identifier), said)
    assert "more of it" in bad.missed
    await seen.write()
    again = SeenPods(CriSettings(), file, started_ns=2)
    assert again.pods["good"].holds(listing(good))
    assert again.pods["bad"].missed == bad.missed
    kept = sum(len(each.unmeasured) for each in bad.containers.values())
    assert kept == 0, "it has no identity any more, so nothing of it is compared"


async def test_a_container_that_crashes_again_and_again_is_remembered_once(tmp_path: Path) -> None:
    file = tmp_path / "seen.json"
    seen = SeenPods(CriSettings(), file, started_ns=0)
    pod = await started(seen, "s")
    for attempt in range(50):
        identifier = f"c{attempt}"
        said = described(identifier, mounts=3)
        await seen.add_container(pod, listed("s", identifier, attempt=attempt), said)
        seen.forget_gone({identifier, f"c{attempt - 1}"})
    assert set(pod.containers) == {"c48", "c49"}
    assert not pod.missed
    await seen.write()
    assert len(json.loads(file.read_bytes())["pods"]["s"]["containers"]) == 2
    again = SeenPods(CriSettings(), file, started_ns=2).pods["s"]
    assert again.all_until == {"main": 50}
    again.find_gaps()
    assert not again.missed


async def test_what_ran_only_once_is_not_forgotten() -> None:
    """An attempt with other arguments, between two that are listed."""
    seen = SeenPods(CriSettings(), None, started_ns=0)
    pod = await started(seen, "s")
    for attempt, argument in enumerate(["good", "bad", "good", "good"]):
        identifier = f"c{attempt}"
        await seen.add_container(
            pod, listed("s", identifier, attempt=attempt), described(identifier, argument=argument)
        )
        seen.forget_gone({identifier})
    assert set(pod.containers) == {"c1", "c3"}
    allowed = PodContents(sandbox=pod.digest, containers=(pod.containers["c3"].digest,))
    assert not pod.holds(allowed)


def test_an_attempt_that_was_never_seen_is_found_however_many_are_forgotten() -> None:
    pod = SeenPod(uid="u", pid=1, digest=PAUSE, unmeasured=())
    for attempt in (0, 1, 3):
        pod.containers[f"c{attempt}"] = SeenContainer(
            name="main", attempt=attempt, image=IMAGE, digest=PAUSE, unmeasured=()
        )
        pod.find_gaps()
        pod.forget_gone({f"c{attempt}"})
    assert pod.missed == "attempt 2 of main was never seen"


async def test_a_pod_whose_age_nobody_knows_is_not_young(tmp_path: Path) -> None:
    """It began while the clock was ahead, before this agent, and something in it may be over."""
    seen = SeenPods(CriSettings(), tmp_path / "seen.json", started_ns=10)
    said = {
        "old": replace(described("old"), created_at=9),
        "young": replace(described("young"), created_at=11),
        "ahead": replace(described("ahead"), created_at=1_000),
    }
    found = {key: await seen.add_sandbox(key, one, now_ns=12) for key, one in said.items()}
    assert {key for key, pod in found.items() if pod.missed} == {"old", "ahead"}
