"""A client as the xDS protocol means it, and a world that changes: the model of the state machines.

The model knows nothing of our code: it is written from the protocol's document. It checks every
response when it takes it, and tells what its view must come to.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

LONG = ("spiffe://td/a", "spiffe://td/b", "spiffe://td")
ALIASES = ("default", "ROOTCA")
NAMES = (*LONG, *ALIASES)
GONE = "gone"
"""What was refused, where it was a removal."""


@dataclass
class Response:
    """One response on its way: name -> version, and names that are told to be gone."""

    nonce: str
    resources: dict[str, str]
    removed: tuple[str, ...] = ()


@dataclass
class Request:
    """One request, of either kind (``names`` in state of the world, the others in delta)."""

    names: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    initial: dict[str, str] = field(default_factory=dict)
    nonce: str = ""
    error: str | None = None


@dataclass
class World:
    """What exists: name -> version."""

    contents: dict[str, str] = field(default_factory=dict)
    long_names: tuple[str, ...] = LONG

    def everything(self) -> tuple[str, ...]:
        return tuple(name for name in self.long_names if name in self.contents)


@dataclass
class Client:
    """One client over its streams; responses are taken in the order in which they came."""

    delta: bool
    world: World
    explicit: set[str] = field(default_factory=set)
    wildcard: bool = False
    named: bool = False
    begun: bool = False
    view: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    seen: dict[str, str] = field(default_factory=dict)
    """The version that the current subscription of a name was sent last."""
    excused: dict[str, int] = field(default_factory=dict)
    """Names that were subscribed again: the first response after this one may repeat them."""
    unsettled: bool = False
    """A list went out while responses were on their way: the server takes it with the last ACK."""
    taken: int = 0
    nonce: str = ""
    nonces: set[str] = field(default_factory=set)
    queue: deque[Response] = field(default_factory=deque)

    # --- requests -------------------------------------------------------------------------------

    def connect(self, names: tuple[str, ...]) -> Request:
        """The first request of a new stream."""
        self.queue.clear()
        self.unsettled = False
        self.nonce = ""
        self.seen = {}
        self.excused = {}
        self.begun = True
        self.named = bool(names)
        self.wildcard = not names or "*" in names
        self.explicit = set(names) - {"*"}
        wanted = self.wanted()
        self.view = {name: version for name, version in self.view.items() if name in wanted}
        if not self.delta:
            self.refused = {}
            return Request(names=names)
        # What was refused is not what was kept; whatever is kept counts as sent.
        self.refused = {}
        self.seen = dict(self.view)
        return Request(subscribe=names, initial=dict(self.view))

    def rename(self, names: tuple[str, ...]) -> Request:
        """State of the world: another list."""
        self.named = self.named or bool(names)
        before, had_wildcard = self.explicit, self.wildcard
        self.explicit = set(names) - {"*"}
        self.wildcard = "*" in names or not self.named
        unchanged = (self.explicit, self.wildcard) == (before, had_wildcard)
        if unchanged and self.nonce and not self.queue:
            self._excuse(self.wanted() | set(self.view))  # neither an ACK nor another list
        if self.wildcard and not had_wildcard:
            self._excuse(set(self.world.long_names) - before)
        self._excuse(self.explicit - before)
        self.unsettled = bool(self.queue)
        self._forget_unwanted()
        return Request(names=names, nonce=self.nonce)

    def resubscribe(self, subscribe: tuple[str, ...], unsubscribe: tuple[str, ...]) -> Request:
        """Delta: other names."""
        if "*" in unsubscribe:
            self.wildcard = False
            self._excuse(set(self.world.long_names) - self.explicit)
            self._forget_unwanted()
        self.wildcard = self.wildcard or "*" in subscribe
        # A name dropped beside the wildcard is told again: sent or removed.
        self._excuse(self.explicit & set(unsubscribe))
        self.explicit -= set(unsubscribe)
        self._forget_unwanted()
        self._excuse(set(subscribe))
        self.explicit |= set(subscribe) - {"*"}
        return Request(subscribe=subscribe, unsubscribe=unsubscribe)

    def take(self, *, accept: bool) -> Request:
        """Take the oldest response; the ACK or NACK of it."""
        response = self.queue.popleft()
        self.taken += 1
        self.check(response)
        self.nonce = response.nonce
        wanted = self.wanted()
        for name, version in response.resources.items():
            self.seen[name] = version
            if name not in wanted and not self.wildcard:
                continue
            if accept:
                self.view[name] = version
                self.refused.pop(name, None)
            else:
                self.refused[name] = version
        if not accept and len(response.resources) > 1:
            self._excuse(set(response.resources))  # perhaps only one of them is bad
        for name in response.removed:
            self.seen.pop(name, None)
            if accept:
                self.view.pop(name, None)
                self.refused.pop(name, None)
            else:
                self.refused[name] = GONE
        if self.unsettled:
            self._excuse(set(self.excused))
            self.unsettled = bool(self.queue)
        error = None if accept else "refused by the model"
        if self.delta:
            return Request(nonce=response.nonce, error=error)
        return Request(names=self.current_names(), nonce=response.nonce, error=error)

    def current_names(self) -> tuple[str, ...]:
        """The list that state of the world repeats with each request."""
        names = tuple(sorted(self.explicit))
        return ("*", *names) if self.wildcard and self.named else names

    # --- what must hold -------------------------------------------------------------------------

    def check(self, response: Response) -> None:
        """What must be true of every single response."""
        assert response.resources or response.removed, "an empty response"
        assert response.nonce, "no nonce"
        assert response.nonce not in self.nonces, "a nonce that came before"
        self.nonces.add(response.nonce)
        assert not response.removed or self.delta, "a removal in state of the world"
        for name, version in response.resources.items():
            assert name not in response.removed
            repeated = self.seen.get(name) == version
            assert not repeated or name in self.excused, f"{name} unchanged and sent again"
        for name in (*response.resources, *response.removed):
            if not self.unsettled and self.excused.get(name, self.taken) < self.taken:
                del self.excused[name]

    def wanted(self) -> set[str]:
        """Names that are asked for, one way or the other."""
        return self.explicit | (set(self.world.everything()) if self.wildcard else set())

    def has_converged(self) -> bool:
        """Whether the view is what the world has, but for what was refused."""
        for name in self.wanted():
            version = self.world.contents.get(name)
            if version is None:
                if self.delta and name in self.view and name not in self.refused:
                    return False
            elif self.refused.get(name) != version and self.view.get(name) != version:
                return False
        if self.delta and self.wildcard:
            kept = self.view.keys() - self.explicit - self.refused.keys()
            return kept <= set(self.world.everything())
        return True

    def _excuse(self, names: set[str]) -> None:
        self.excused |= dict.fromkeys(names - {"*"}, self.taken + len(self.queue))

    def _forget_unwanted(self) -> None:
        wanted = self.wanted()
        for name in [name for name in self.view if name not in wanted]:
            if not self.wildcard:
                del self.view[name]
        for name in [name for name in self.refused if name not in wanted | set(self.view)]:
            del self.refused[name]
