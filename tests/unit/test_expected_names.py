"""What a delta client is told of a name that has nothing behind it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sds.serving.subscription import DeltaRequest, DeltaSubscription, Receipt

if TYPE_CHECKING:
    from collections.abc import Collection


@dataclass(frozen=True)
class Thing:
    receipt: Receipt
    size: int = 1


@dataclass
class View:
    """Every name is expected; those in ``versions`` are there."""

    versions: dict[str, str] = field(default_factory=dict)

    def find(self, name: str) -> Thing | None:
        version = self.versions.get(name)
        return None if version is None else Thing(Receipt(name, version))

    def is_expected(self, name: str) -> bool:
        del name
        return True

    def everything(self) -> Collection[str]:
        return ()


def ask(core: DeltaSubscription[Thing], *names: str) -> None:
    list(core.outcomes(DeltaRequest(subscribe=names)))


def removed(core: DeltaSubscription[Thing], view: View) -> list[str] | None:
    answer = core.respond(view, "nonce")
    return None if answer is None else answer.removed


def test_what_was_never_sent_is_logged_as_absent_and_not_told() -> None:
    core: DeltaSubscription[Thing] = DeltaSubscription()
    ask(core, "a")
    answer = core.respond(View(), "n1")
    assert answer is not None
    assert (answer.absent, answer.removed) == (["a"], [])
    core.touch(["a"])
    assert core.respond(View(), "n2") is None


def test_what_the_client_has_is_told_even_if_it_asks_again_before_it_can_know() -> None:
    core: DeltaSubscription[Thing] = DeltaSubscription()
    view = View({"a": "v1"})
    ask(core, "a")
    assert removed(core, view) == []
    view.versions.clear()
    ask(core, "a")
    assert removed(core, view) == ["a"]
    ask(core, "a")
    assert not removed(core, view)


def test_what_the_client_says_that_it_has_is_told() -> None:
    core: DeltaSubscription[Thing] = DeltaSubscription()
    list(core.outcomes(DeltaRequest(subscribe=("a",), initial_versions={"a": "v1"})))
    assert removed(core, View()) == ["a"]
