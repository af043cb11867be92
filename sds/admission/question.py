"""Reads the wrapper's question from bytes.

Owns :class:`Question`. Invariants: sizes are checked before anything is parsed; the document is
parsed once, strictly; only our own errors leave this module.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Any, Final

from sds.errors import WorkloadError

MOST_HEADER: Final = 8 << 10
MOST_DOCUMENT: Final = 4 << 20
_FIELDS: Final = 5
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)
_POD_UID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}", re.ASCII)
_ANNOTATION: Final = "io.kubernetes.cri."


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question of the wrapper: may this container or process start?

    Attributes:
        command: ``create`` or ``exec``.
        identifier: the container's ID.
        has_input: whether its standard input would be more than ``/dev/null``.
        pid_file: where runc will write the pid, or the empty string.
        document: OCI ``config.json`` or ``process``, decoded; an object.
    """

    command: str
    identifier: str
    has_input: bool
    pid_file: str
    document: dict[str, Any]

    def annotation(self, name: str) -> str:
        """Return what containerd writes about a container in ``io.kubernetes.cri.NAME``.

        Raises:
            WorkloadError: ``admission_form``: the annotation is missing, as for a container that no
                kubelet asked for.
        """
        found = self.document.get("annotations")
        value = found.get(_ANNOTATION + name) if isinstance(found, dict) else None
        if not isinstance(value, str):
            raise bad_form(f"the annotation {_ANNOTATION}{name} is missing: CRI did not make it")
        return value

    def pod_uid(self) -> str:
        """Return the pod's UID.

        Raises:
            WorkloadError: ``admission_form``.
        """
        value = self.annotation("sandbox-uid")
        if not _POD_UID.fullmatch(value):
            raise bad_form(f"{value[:80]!r} is not a pod's UID")
        return value


async def read_question(reader: asyncio.StreamReader) -> Question:
    """Read one question from a connection.

    Raises:
        WorkloadError: ``admission_form``: the question is malformed. OSError: the connection ends.
    """
    try:
        fields = [(await reader.readuntil(b"\0"))[:-1].decode() for _ in range(_FIELDS)]
        command, identifier, has_input, pid_file, size = *fields[:-1], int(fields[-1])
    except (asyncio.LimitOverrunError, EOFError, ValueError) as error:
        raise bad_form(f"the wrapper's question is not understood: {error!r}") from error
    if command not in ("create", "exec") or has_input not in ("", "input"):
        raise bad_form("the wrapper's question is of an unknown kind")
    if not _IDENTIFIER.fullmatch(identifier):
        raise bad_form("the container's ID has characters that IDs do not have")
    if not 0 < size <= MOST_DOCUMENT:
        raise bad_form(f"the document is empty or larger than {MOST_DOCUMENT} bytes")
    try:
        content = await reader.readexactly(size)
    except EOFError as error:
        raise bad_form("the wrapper's question is cut short") from error
    return Question(
        command=command,
        identifier=identifier,
        has_input=bool(has_input),
        pid_file=pid_file,
        document=_decoded(content),
    )


def _decoded(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content, object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise bad_form(f"config.json or the process is not JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise bad_form("config.json or the process is not an object")
    return found


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Go takes the last of two equal keys, and ignores case: runc must not read another container
    # than this code does.
    if len({key.casefold() for key, _ in pairs}) != len(pairs):
        raise ValueError("a key appears twice")
    return dict(pairs)


def bad_form(why: str) -> WorkloadError:
    """Make the error for a question that cannot be judged."""
    return WorkloadError(why, reason="admission_form")
