"""The subscribers that the agent's state lists.

Clients choose how many streams they have and which names they ask for. Owns how many of them the
state lists. Invariants: the number of listed streams and names is bounded for each workload and for
all together, so that the state is small enough to be made at once and sent in one message; the rest
is counted.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Final

from sds.operations.state import ClientState, SubscriptionState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sds.serving.service import SecretService
    from sds.serving.stream import Stream
    from sds.serving.subscription import Watched

MOST_STREAMS: Final = 2_000
MOST_OF_A_WORKLOAD: Final = 1_000
MOST_NAMES: Final = 4_000
_NAMES_OF_A_STREAM: Final = 100
_SHOWN_BYTES: Final = 256
"""How many bytes are shown of a node's id, of a name, and of a client's text about it: characters
have up to four, and many clients of gRPC take 4 MiB at most."""


def listed_clients(service: SecretService) -> tuple[tuple[ClientState, ...], int]:
    """Return the subscribers to list, and how many streams are left out."""
    found: list[ClientState] = []
    of_workload: Counter[str] = Counter()
    names, streams = MOST_NAMES, 0
    for session in service.sessions():
        workload = session.caller.name
        streams += len(session.streams)
        room = min(MOST_STREAMS - len(found), MOST_OF_A_WORKLOAD - of_workload[workload])
        for stream in islice(session.streams, max(0, room)):
            shown = tuple(_subscriptions(stream, min(names, _NAMES_OF_A_STREAM)))
            names -= len(shown)
            of_workload[workload] += 1
            found.append(
                ClientState(
                    node=_clipped(stream.node.id),
                    workload=workload,
                    method=stream.method.value,
                    subscriptions=shown,
                )
            )
    return tuple(found), streams - len(found)


def _subscriptions(stream: Stream, most: int) -> Iterator[SubscriptionState]:
    for conversation in stream.conversations.values():
        some = list(islice(conversation.subscription.watched(), most))
        most -= len(some)
        yield from map(_subscription, sorted(some))


def _subscription(watched: Watched) -> SubscriptionState:
    if watched.refused is not None and watched.refused == watched.sent:
        state = "NACKed"
    elif watched.sent is None and watched.acked is None:
        state = "waiting"
    else:
        state = "ACKed" if watched.acked == watched.sent else "sent"
    return SubscriptionState(
        name=_clipped(watched.name),
        version=watched.sent or watched.acked or "",
        state=state,
        error=_clipped(watched.error) if state == "NACKed" else "",
    )


def _clipped(text: str) -> str:
    return text.encode()[:_SHOWN_BYTES].decode(errors="ignore")
