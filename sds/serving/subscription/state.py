"""The state that both protocols share: what a stream watches, what was sent, what is due.

Owns the state of names and of responses without an answer. Invariants: a name is sent only if its
version differs from the one sent last, unless the client asks again or refused it together with
others; at most :data:`MAX_OUTSTANDING` responses wait for an ACK; the nonce that counts as the
newest is one that was sent; only the receipt of a resource is kept once it was sent.
"""

from __future__ import annotations

import sys
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, ClassVar, Final, Generic

from sds.serving.name_budget import text_cost
from sds.serving.subscription.messages import Answer, Outcome, R, Receipt, Watched
from sds.shrinking_dict import ShrinkingDict

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from sds.serving.subscription.messages import View

WILDCARD: Final = "*"
MAX_OUTSTANDING: Final = 32
"""The most responses that wait for an ACK; beyond that the oldest one is forgotten."""
_KEPT_CHARACTERS: Final = 512
"""How many characters of a client's refusal are kept for each name."""
FEW: Final = 16
"""The most names and resources of an ACK that is entered at once."""
RESPONSE_BYTES: Final = 256 * 1024
"""Once a response has this much content, the rest goes into the next one."""


class Watch:
    """The state of one name."""

    __slots__ = ("absence_told", "acked", "asked", "claimed", "error", "refused", "sent")

    def __init__(self, *, asked: bool) -> None:
        self.asked = asked
        """Whether the client asked for it by name, not only by the wildcard."""
        self.sent: str | None = None
        self.acked: str | None = None
        self.refused: str | None = None
        self.error = ""
        self.claimed = False
        """Whether ``sent`` is what the client claims to have kept from an earlier stream."""
        self.absence_told = False


class Subscription(Generic[R]):
    """The state and decisions that state of the world and delta share."""

    _TELLS_REMOVALS: ClassVar[bool] = False
    __slots__ = (
        "_all_due",
        "_begun",
        "_due",
        "_empty_is_all",
        "_halves",
        "_last_nonce",
        "_outstanding",
        "_refused",
        "_watches",
        "wildcard",
        "words",
    )

    def __init__(self, *, empty_is_all: bool = True) -> None:
        """Begin a stream that watches nothing.

        Args:
            empty_is_all: whether a client that has named nothing yet asks for everything.
        """
        self._empty_is_all = empty_is_all
        self._watches: ShrinkingDict[str, Watch] = ShrinkingDict()
        self._due: ShrinkingDict[str, None] = ShrinkingDict()
        """Names to look at, in the order in which they became due."""
        self._all_due = False
        self._refused: ShrinkingDict[str, None] = ShrinkingDict()
        """Watched names whose last answer from the client was a refusal."""
        self._halves: deque[tuple[Receipt, ...]] = deque()
        """Halves of refused responses, to be sent once more, each in a response of its own."""
        self._outstanding: dict[str, tuple[Receipt, ...]] = {}
        self._last_nonce = ""
        self._begun = False
        self.wildcard = False
        self.words = 0
        """Bytes of memory of what the client said about names that it refused."""

    # --- asked from outside ---------------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        """Return the watched names: asked for, or sent under the wildcard."""
        return tuple(self._watches)

    def __len__(self) -> int:
        """Return how many names are watched."""
        return len(self._watches)

    def watched(self) -> Iterator[Watched]:
        """Yield the state of each name."""
        for name, watch in self._watches.items():
            yield Watched(name, watch.sent, watch.acked, watch.refused, watch.error)

    def refused(self) -> int:
        """Return how many names have a current version that the client refused."""
        found = 0
        for name in self._refused:
            watch = self._watches.get(name)
            if watch is not None and watch.refused is not None and watch.refused == watch.sent:
                found += 1
        return found

    def has_due(self) -> bool:
        """Say whether there is anything to look at."""
        return self._all_due or bool(self._due or self._halves)

    def touch(self, names: Iterable[str]) -> None:
        """Mark these names as due: their content may have changed, come or gone."""
        for name in names:
            if self.wildcard or name in self._watches:
                self._due[name] = None

    def touch_all(self) -> None:
        """Mark every name as due: any content may have changed."""
        self._all_due = True

    # --- inside ---------------------------------------------------------------------------------

    def _forget(self, name: str) -> None:
        """Forget a name that is no longer watched."""
        if (watch := self._watches[name]).error:
            self._note(watch, "")
        del self._watches[name]
        self._due.take(name)
        self._refused.take(name)

    def _ask(self, name: str) -> None:
        """Watch a name that the client asks for, perhaps again: it is sent in any case."""
        before = self._watches.get(name)
        if before is not None and before.error:
            self._note(before, "")
        watch = self._watches[name] = Watch(asked=True)
        if before is not None and before.sent is not None:
            watch.sent = ""  # the client has something, although no version of it counts
        self._due[name] = None

    def _note(self, watch: Watch, error: str) -> None:
        """Keep what the client said about a name now, and nothing that it said before."""
        self.words += text_cost(error) - text_cost(watch.error)
        watch.error = error

    def _acknowledge(self, nonce: str) -> Outcome | None:
        """Enter the ACK of a small response; None, with nothing entered, if it is no such ACK."""
        receipts = self._outstanding.get(nonce)
        if receipts is None or len(receipts) > FEW:
            return None
        outcome = Outcome()
        self._settle(outcome, nonce, None)
        return outcome

    def _settle(self, outcome: Outcome, nonce: str, error: str | None) -> bool:
        """Enter an ACK or a NACK; return False if no response with this nonce waits for one."""
        receipts = self._outstanding.pop(nonce, None)
        if receipts is None:
            return False
        if error is None:
            outcome.acked = receipts
        else:
            outcome.nacked = receipts
            outcome.error = error
        kept = (error or "")[:_KEPT_CHARACTERS]
        for name, version, _ in receipts:
            watch = self._watches.get(name)
            if watch is None:
                continue
            if error is None:
                watch.acked = version
                watch.refused = None
                if watch.error:
                    self._note(watch, "")
                self._refused.take(name)
            else:
                watch.refused = version
                self._note(watch, kept)
                self._refused[name] = None
        if error is not None and len(receipts) > 1:
            middle = len(receipts) // 2
            self._halves += (receipts[:middle], receipts[middle:])
        return True

    def respond(self, view: View[R], nonce: str, most: int = sys.maxsize) -> Answer[R] | None:
        """Return what to send now under ``nonce``; None if there is nothing to send or report.

        At most ``most`` names are looked at, and content beyond :data:`RESPONSE_BYTES` waits; what
        was left out stays due (:meth:`has_due`).
        """
        if not (self._due or self._all_due):
            return self._repeat(view, nonce) if self._halves else None
        answer: Answer[R] = Answer()
        everything = frozenset(view.everything()) if self.wildcard else frozenset()
        names = self._take_due(everything, most)
        room = RESPONSE_BYTES
        for at, name in enumerate(names):
            watch = self._watches.get(name)
            covered = (watch is not None and watch.asked) or name in everything
            resource = view.find(name) if covered else None
            if resource is not None:
                room -= self._take_content(answer, name, resource)
                if room <= 0 and most < sys.maxsize:
                    later, self._due = self._due, ShrinkingDict()
                    self._due.update(dict.fromkeys(names[at + 1 :]))
                    self._due.update(later)
                    break
            elif watch is not None:
                self._take_absence(answer, name, watch, view)
        if answer.resources or answer.removed:
            self._await_answer(nonce, tuple([one.receipt for one in answer.resources]))
            return answer
        return answer if answer.absent or answer.held else None

    def _repeat(self, view: View[R], nonce: str) -> Answer[R] | None:
        """Return half of a response that was refused, because only one resource may be bad.

        Envoy stops at the first resource that it refuses, and takes none of those that follow. Each
        half that is refused is halved again, so in the end the bad resource is refused alone, and
        that is not repeated.
        """
        answer: Answer[R] = Answer()
        for name, version, _ in self._halves.popleft():
            watch = self._watches.get(name)
            if watch is None or not watch.sent == watch.refused == version:
                continue  # it was dropped, or something newer was sent or accepted
            resource = view.find(name)
            if resource is not None and resource.receipt.version == version:
                answer.resources.append(resource)
        if not answer.resources:
            return None
        self._await_answer(nonce, tuple([one.receipt for one in answer.resources]))
        return answer

    def sent(self) -> list[tuple[str, str]]:
        """Return names and versions of what the client has."""
        return [
            (name, watch.sent) for name, watch in self._watches.items() if watch.sent is not None
        ]

    def beat(self, nonce: str) -> None:
        """Note that a heartbeat goes out under ``nonce``; its ACK means nothing."""
        self._await_answer(nonce, ())

    def _take_due(self, everything: Collection[str], most: int) -> list[str]:
        """Return the names to look at now, at most ``most``."""
        due = self._due
        if self._all_due:
            self._all_due = False
            due.update(dict.fromkeys(self._watches))
            due.update(dict.fromkeys(everything))
        if len(due) <= most:
            names = sorted(due)
            due.clear()
            return names
        some = list(islice(due, most))
        for name in some:
            del due[name]
        return sorted(some)

    def _take_content(self, answer: Answer[R], name: str, resource: R) -> int:
        """Take content under a watched name into the answer; return how many bytes of it go out."""
        watch = self._watches.get(name)
        if watch is None:
            watch = self._watches[name] = Watch(asked=False)
        version = resource.receipt.version
        size = 0
        if watch.sent != version:
            watch.sent = version
            answer.resources.append(resource)
            size = resource.size
        elif watch.claimed:
            watch.acked = version
            answer.held.append(resource.receipt)
        watch.claimed = False
        watch.absence_told = False
        return size

    def _take_absence(self, answer: Answer[R], name: str, watch: Watch, view: View[R]) -> None:
        """Note that there is nothing (any more) under a watched name."""
        never_told = watch.asked and not watch.absence_told
        if never_told and watch.sent is None:
            answer.absent.append(name)
        # What has only not come yet is not told as removed: Envoy would not wait for it any longer.
        if self._TELLS_REMOVALS and (
            watch.sent is not None or (never_told and not view.is_expected(name))
        ):
            answer.removed.append(name)
        watch.sent = None
        watch.absence_told = True
        if not watch.asked:
            self._forget(name)

    def _await_answer(self, nonce: str, receipts: tuple[Receipt, ...]) -> None:
        """Remember what is sent under ``nonce``."""
        self._last_nonce = nonce
        if len(self._outstanding) >= MAX_OUTSTANDING:
            del self._outstanding[next(iter(self._outstanding))]
        self._outstanding[nonce] = receipts
