"""A container that the runtime lists but cannot describe: what that means for its pod."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sds.clock import SystemClock
from sds.errors import WorkloadError
from sds.workload.cri.attestor import CriAttestor
from sds.workload.cri.pods import SeenContainer, SeenPod, SeenPods
from sds.workload.cri.runtime import DescribedContainer, Listed
from sds.workload.cri.settings import CriSettings, PodContents
from sds.workload.proc import pod_roots
from tests.support.clock import FakeClock

if TYPE_CHECKING:
    import pytest

SANDBOX, KNOWN, OTHER = "5a", "c0", "c1"
WEB, PAUSE = f"sha256:{32 * 'aa'}", f"sha256:{32 * 'bb'}"
LISTED = PodContents(sandbox=PAUSE, containers=(WEB,))


class PlayedRuntime:
    """A runtime that lists these containers and describes none."""

    def __init__(self, reason: str) -> None:
        self.there = [OTHER]
        self.reason = reason
        self.asked: list[str] = []
        self.gone = False
        self.pods = {SANDBOX}

    async def sandboxes(self) -> frozenset[str]:
        if self.gone and self.asked:
            raise WorkloadError("nobody answers", reason="cri_unavailable")
        return frozenset(self.pods)

    async def containers(self, **_: str) -> tuple[Listed, ...]:
        return tuple(
            Listed(id=each, sandbox_id=SANDBOX, name="more", attempt=0, image="", alive=True)
            for each in self.there
        )

    async def sandbox(self, identifier: str) -> Any:
        return await self.container(identifier)

    async def container(self, identifier: str) -> Any:
        self.asked.append(identifier)
        raise WorkloadError(f"{identifier} is not described", reason=self.reason)


def attestor(runtime: Any) -> tuple[CriAttestor, SeenPod]:
    settings = CriSettings()
    seen = SeenPods(settings, None, started_ns=0)
    web = SeenContainer(name="web", attempt=0, image="", digest=WEB, unmeasured=())
    pod = SeenPod(uid="u", pid=1, digest=PAUSE, unmeasured=(), containers={KNOWN: web})
    seen.pods[SANDBOX] = pod
    made = CriAttestor(runtime, seen, settings, roots=pod_roots({}), clock=SystemClock())
    return made, pod


async def test_what_has_ended_meanwhile_costs_the_pod_its_identity_until_the_next_look(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runtime = PlayedRuntime("cri_not_described")
    looks, pod = attestor(runtime)
    assert pod.holds(LISTED)
    for _ in range(3):
        await looks._look()
        assert not pod.holds(LISTED)
    assert len([one for one in caplog.records if "not described" in one.message]) == 1
    runtime.there = []
    await looks._look()
    assert pod.holds(LISTED)


async def test_what_is_too_long_to_be_described_costs_the_pod_its_identity_for_good() -> None:
    runtime = PlayedRuntime("cri_unknown_shape")
    looks, pod = attestor(runtime)
    await looks._look()
    runtime.there = []
    await looks._look()
    assert not pod.holds(LISTED)


async def test_a_look_that_fails_at_one_container_costs_its_pod_the_identity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before, the look ended there, and the pod kept its identity with what nobody had seen."""

    async def broken(_: str) -> None:
        raise RuntimeError("can't start new thread")

    runtime = PlayedRuntime("cri_not_described")
    monkeypatch.setattr(runtime, "container", broken)
    runtime.pods |= {"another"}
    looks, pod = attestor(runtime)
    for _ in range(2):
        await looks._look()
        assert not pod.holds(LISTED)
    runtime.there = []
    await looks._look()
    assert pod.holds(LISTED)


async def test_a_pod_that_begins_after_the_clock_was_set_back_has_its_identity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before, no new pod had one until the clock was where it had been when the agent started."""
    clock = FakeClock()
    runtime = PlayedRuntime("cri_not_described")
    runtime.there = []
    runtime.pods = {"before"}
    made = SeenPods(CriSettings(), None, started_ns=int(clock.wall.timestamp() * 1e9))
    looks = CriAttestor(runtime, made, CriSettings(), roots=pod_roots({}), clock=clock)  # type: ignore[arg-type]

    async def sandbox(identifier: str) -> DescribedContainer:
        spec = {
            "process": {"user": {}, "args": []},
            "root": {},
            "mounts": [],
            "linux": {"cgroupsPath": f"/{identifier}"},
            "annotations": {},
        }
        created_at = int(clock.wall.timestamp() * 1e9) - 10**9
        return DescribedContainer(
            pid=1, spec=spec, image="pause", pod_uid=identifier, created_at=created_at
        )

    monkeypatch.setattr(runtime, "sandbox", sandbox)
    await looks._look()
    clock.step(-3600)
    runtime.pods |= {"after"}
    await looks._look()
    assert {key for key, pod in made.pods.items() if pod.missed} == {"before"}


async def test_an_outage_of_the_runtime_changes_nothing() -> None:
    looks, pod = attestor(PlayedRuntime("cri_unavailable"))
    await looks._look()
    assert pod.holds(LISTED)
    assert looks.notices()


async def test_one_list_that_lacks_a_sandbox_costs_its_pod_nothing_for_good() -> None:
    """Before, what was seen in it was forgotten, and a pod older than the agent never came back."""
    runtime = PlayedRuntime("cri_not_described")
    runtime.there = []
    looks, pod = attestor(runtime)
    for _ in range(2):
        runtime.pods = set()
        await looks._look()
        runtime.pods = {SANDBOX}
        await looks._look()
        assert looks._seen.pods == {SANDBOX: pod}
        assert pod.holds(LISTED)
    runtime.pods = set()
    for _ in range(2):
        await looks._look()
    assert not looks._seen.pods, "and one that is gone is forgotten"


async def test_what_is_late_costs_the_pod_its_identity_and_is_not_asked_about_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runtime = PlayedRuntime("cri_late")
    runtime.pods |= {"stuck"}
    looks, pod = attestor(runtime)
    for _ in range(3):
        await looks._look()
        assert not pod.holds(LISTED)
    assert sorted(runtime.asked) == [OTHER, "stuck"]
    assert len([one for one in caplog.records if "not described" in one.message]) == 2
    runtime.there = []
    await looks._look()
    assert pod.holds(LISTED)


async def test_a_runtime_that_is_late_for_everybody_is_an_outage() -> None:
    runtime = PlayedRuntime("cri_late")
    runtime.gone = True
    looks, pod = attestor(runtime)
    await looks._look()
    assert pod.holds(LISTED)
    assert looks.notices()
