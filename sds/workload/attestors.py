"""The registry of workload attestors: one line for each.

Owns the list, and what an attestor gets when it is opened. An attestor is one module with a
``KIND`` in it (:class:`AttestorKind`) and one line here; ``docs/extending.md`` has the recipe.
Invariant: this module loads no attestor, so a node does not pay for those that it does not use.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from sds.clock import Clock
    from sds.workload.cgroup import PodRoots
    from sds.workload.cri.settings import PodContents
    from sds.workload.facts import Attestor


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredAttestor:
    """What is known of an attestor without loading its module.

    Attributes:
        module: the module that has ``KIND``.
        types: selector types that it finds; one that ends in ``:`` means every type with that
            prefix.
        alone: whether it can recognise a caller of the node-wide socket without other attestors.
        pods: whether it needs to know where pods may be.
    """

    module: str
    types: frozenset[str]
    alone: bool = True
    pods: bool = False


ATTESTORS: Final[dict[str, RegisteredAttestor]] = {
    "socket": RegisteredAttestor(
        module="sds.workload.socket_name", types=frozenset({"socket:name"}), alone=False
    ),
    "unix": RegisteredAttestor(
        module="sds.workload.unix",
        types=frozenset(
            {"unix:uid", "unix:gid", "unix:supplementary-gid", "unix:path", "unix:sha256"}
        ),
    ),
    "kubernetes": RegisteredAttestor(
        module="sds.workload.kubernetes.kind",
        types=frozenset(
            {
                "k8s:ns",
                "k8s:sa",
                "k8s:pod-name",
                "k8s:pod-uid",
                "k8s:pod-label:",
                "k8s:node",
                "k8s:container-name",
                "k8s:image-digest",
            }
        ),
        pods=True,
    ),
    "cri": RegisteredAttestor(
        module="sds.workload.cri.kind",
        types=frozenset(
            {
                "cri:container-digest",
                "cri:container-name",
                "cri:image-config",
                "cri:pod-digest",
            }
        ),
        pods=True,
    ),
}
"""The attestors, by their names in the configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeContext:
    """What an attestor gets when it is opened.

    Attributes:
        socket: the name of the socket that callers connect to.
        settings: the section ``node:`` of the agent's configuration, with one field for each
            attestor that has settings, and ``others`` for those that have no field.
        roots: where pods may be; None unless an attestor asks for it.
        directory: a directory of our own for facts that outlive a restart and are not secret, or
            None.
        environment: the agent's environment variables.
        clock: time.
        listed: the pods that the signed policy in force lists.
    """

    socket: str
    settings: Any
    roots: PodRoots | None
    directory: Path | None
    environment: Mapping[str, str]
    clock: Clock
    listed: Callable[[], tuple[PodContents, ...]] = tuple


class AttestorKind(Protocol):
    """One kind of attestor: the ``KIND`` of its module."""

    def open(self, node: NodeContext) -> AbstractAsyncContextManager[Attestor]:
        """Open the attestor while the block runs.

        Raises:
            ConfigurationError: the settings do not fit this machine.
        """
        ...


def attestor_kind(name: str) -> AttestorKind:
    """Load the attestor of this name.

    Raises:
        KeyError: there is no such attestor.
    """
    found: AttestorKind = importlib.import_module(ATTESTORS[name].module).KIND
    return found


def selector_types() -> frozenset[str]:
    """Return every selector type that an attestor finds; prefixes end in ``:``."""
    return frozenset[str]().union(*(each.types for each in ATTESTORS.values()))
