"""Which facts the author of a pod chooses, so that they tell no pods apart.

Owns the list of these selectors. Every pod that reaches the node's socket can have any user that
its author writes (``runAsUser``), any path in its image and any name of a container. Invariant: a
rule that asks for nothing else, on a node that has pods, is told to whoever wrote it; the rule
itself stays valid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sds.workload.mapping import WorkloadRule

CHOSEN: Final = frozenset(
    {
        *("socket:name", "unix:uid", "unix:gid", "unix:supplementary-gid", "unix:path"),
        "cri:container-name",
    }
)
_OF_PODS: Final = ("k8s:", "cri:")


def names_pods(rule: WorkloadRule) -> bool:
    """Say whether a rule asks for a fact that only processes in pods have."""
    return any(kind.startswith(_OF_PODS) for kind in rule.match)


def open_to_pods(rules: Iterable[WorkloadRule]) -> Iterator[str]:
    """Yield a sentence for each rule that any pod satisfies if its author likes."""
    for rule in rules:
        if CHOSEN.issuperset(rule.match):
            yield (
                f"rule {rule.name}: the author of a pod chooses all that it asks for "
                f"({', '.join(sorted(rule.match))}), so any pod that reaches the socket can have "
                "the identity: match facts of the pod too (k8s:, cri:); give a program outside "
                "pods a socket of its own"
            )
