"""Compares a pod in canonical form with its manifest.

Owns :func:`differences`, a pure comparison for people who make a pod's list from a reference pod.
Invariants: a value that the manifest states must be in the container's lines; a container or an
init container that only one of the two has is a difference. The comparison does not judge what the
manifest leaves to the image or to the runtime: the digests cover that.

Also owns :func:`exec_commands`, the commands that the kubelet starts inside containers.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_KINDS: Final = ("initContainers", "containers")
_PROBES: Final = ("livenessProbe", "readinessProbe", "startupProbe")


def differences(spec: Mapping[str, Any], seen: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return what differs, in words; empty if nothing does.

    Args:
        spec: the Pod's ``spec``, decoded.
        seen: the canonical lines of each container, by its name.
    """
    wanted = {
        str(each.get("name")): each
        for kind in _KINDS
        for each in spec.get(kind) or ()
        if isinstance(each, dict)
    }
    found = [f"container {name} has not started" for name in sorted(set(wanted) - set(seen))]
    found += [f"container {name} is not in it" for name in sorted(set(seen) - set(wanted))]
    shared = spec.get("securityContext") or {}
    for name in sorted(set(wanted) & set(seen)):
        found += [f"{name}: {each}" for each in _of_container(wanted[name], shared, seen[name])]
    return tuple(found)


def exec_commands(spec: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield containers' names and the commands that their exec probes and hooks start.

    Args:
        spec: the Pod's ``spec``, decoded.
    """
    for container in (_table(each) for kind in _KINDS for each in spec.get(kind) or ()):
        hooks = _table(container.get("lifecycle"))
        handlers = [container.get(kind) for kind in _PROBES]
        handlers += [hooks.get(kind) for kind in ("postStart", "preStop")]
        for handler in map(_table, handlers):
            command = _table(handler.get("exec")).get("command")
            if isinstance(command, list) and command:
                yield str(container.get("name")), [str(word) for word in command]


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _of_container(
    wanted: Mapping[str, Any], shared: Mapping[str, Any], lines: Sequence[str]
) -> Iterator[str]:
    arguments = [json.loads(line[4:]) for line in lines if line.startswith("arg ")]
    stated = [*map(str, wanted.get("command") or ()), *map(str, wanted.get("args") or ())]
    whole = bool(wanted.get("command"))
    if (arguments if whole else arguments[len(arguments) - len(stated) :]) != stated:
        yield f"it runs {arguments}, the manifest says {stated}"
    environment = {json.loads(line[4:]) for line in lines if line.startswith("env ")}
    for variable in wanted.get("env") or ():
        if "value" in variable and f"{variable['name']}={variable['value']}" not in environment:
            yield f"the variable {variable['name']} is not {variable['value']!r}"
    context = {**shared, **(wanted.get("securityContext") or {})}
    user: dict[str, Any] = next(
        (json.loads(line[5:]) for line in lines if line.startswith("user ")), {}
    )
    for key, inner in (("runAsUser", "uid"), ("runAsGroup", "gid")):
        if key in context and user.get(inner) != context[key]:
            yield f"its {inner} is {user.get(inner)}, the manifest says {context[key]}"
    read_only = bool((wanted.get("securityContext") or {}).get("readOnlyRootFilesystem"))
    if ("root read-only" in lines) != read_only:
        yield f"its root file system is {'not ' if read_only else ''}read-only"
    if not context.get("privileged") and not any(
        line.startswith('maskedPaths ["') for line in lines
    ):
        yield "nothing of /proc is masked in it, as in a privileged container"
