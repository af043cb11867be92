"""Which lists have a pod: compared once, however often its callers are looked at."""

from __future__ import annotations

import pytest

from sds.workload.cri.lists import PodLists
from sds.workload.cri.pods import SeenContainer, SeenPod
from sds.workload.cri.settings import PodContents

PAUSE = f"sha256:{32 * 'ff'}"


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def seen(number: int) -> SeenContainer:
    name = f"c{number}"
    return SeenContainer(name=name, attempt=0, image="", digest=digest(number), unmeasured=())


def pod(*containers: int) -> SeenPod:
    return SeenPod(
        uid="u",
        pid=1,
        digest=PAUSE,
        unmeasured=(),
        containers={str(each): seen(each) for each in containers},
    )


def contents(*containers: int) -> PodContents:
    return PodContents(sandbox=PAUSE, containers=tuple(map(digest, containers)))


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[PodContents]:
    """The lists with which a pod was compared at length."""
    found: list[PodContents] = []
    real = SeenPod.differs

    def differs(self: SeenPod, one: PodContents) -> tuple[str, ...]:
        found.append(one)
        return real(self, one)

    monkeypatch.setattr(SeenPod, "differs", differs)
    return found


def test_a_pod_is_compared_once_until_it_or_the_lists_change(compared: list[PodContents]) -> None:
    """The author of a pod gives it 14,000 mounts, and each of its callers is looked at each second.

    Before, each of these looks compared all of them with every list that has its sandbox.
    """
    policy: tuple[PodContents, ...] = (contents(1, 2), contents(3))
    lists = PodLists((), lambda: policy)
    one = pod(1)
    for _ in range(5):
        assert lists.judge(one).digests == {policy[0].digest}
    assert len(compared) == 1
    one.containers["3"] = seen(3)
    compared.clear()
    for _ in range(5):
        verdict = lists.judge(one)
        assert not verdict.digests
        assert "container c3" in verdict.hints[0]
    assert len(compared) == 2
    policy = (contents(1, 3),)
    assert lists.judge(one).digests == {policy[0].digest}
    one.unclear = "it is not described"
    assert not lists.judge(one).digests
    one.unclear = ""
    assert lists.judge(one).digests
    one.missed = "an attempt"
    assert not lists.judge(one).digests


def test_of_very_many_lists_the_nearest_are_explained(compared: list[PodContents]) -> None:
    near = contents(1, 2, 3)
    others = tuple(contents(100 + number) for number in range(500))
    lists = PodLists((*others, near), tuple)
    (hint,) = lists.judge(pod(1, 2, 9)).hints
    assert hint.endswith(f"container c9 (attempt 0) {digest(9)}")
    assert len(compared) < 20
    assert lists.notices() == [
        f"pod u is not what a list says: container c9 (attempt 0) {digest(9)}"
    ]
    lists.keep_only(set())
    assert not lists.notices()
