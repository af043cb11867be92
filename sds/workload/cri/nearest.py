"""Shows people which lines of a container differ from the closest list.

Owns :func:`compared`. Invariants: the digests decide, never these lines; each line is looked at a
fixed number of times, because a pod's author chooses how many there are; who asks reads nothing of
another pod, whose list may be the closest one: of a line that only the list has, its kind is told.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sds.workload.cri.settings import PodContents


def compared(seen: Sequence[str], pods: Iterable[PodContents]) -> tuple[str, ...]:
    """Return the container's lines, each marked as equal, missing or additional.

    Args:
        seen: the container's canonical form.
        pods: the lists; those that keep lines are used.

    Returns:
        A first line with ``#`` names the list by its digest. Then each line follows ``+`` if only
        the container has it, and two spaces if both have it. After ``-`` is the first word of a
        line that only the list has.
    """
    near = [
        (_distance(seen, lines), pod, lines)
        for pod in pods
        for lines in pod.lines.values()
        if lines[:1] == tuple(seen[:1])
    ]
    if not near:
        return ("# no list has the lines of a container of this name", *_unmarked(seen))
    _, pod, listed = min(near, key=lambda each: each[0])
    missing, more = Counter(listed) - Counter(seen), Counter(seen) - Counter(listed)
    if not missing and not more:
        order = "" if tuple(seen) == tuple(listed) else ", in another order"
        return (f"# as listed for pod {pod.name or pod.digest}{order}", *_unmarked(seen))
    lines = [f"# compared with the list {pod.digest}"]
    for line in listed:
        if missing[line]:
            missing[line] -= 1
            lines.append(f"- {line.partition(' ')[0]} …")
    for line in seen:
        lines.append(f"{'+' if more[line] else ' '} {line}")
        more[line] -= bool(more[line])
    return tuple(lines)


def _distance(seen: Sequence[str], listed: Sequence[str]) -> int:
    one, two = Counter(seen), Counter(listed)
    return (one - two).total() + (two - one).total()


def _unmarked(lines: Iterable[str]) -> Iterable[str]:
    return ("  " + line for line in lines)
