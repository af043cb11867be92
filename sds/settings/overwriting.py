"""Refuses a configuration by which a process would overwrite a file that it reads.

Owns the comparison. Invariant: a file that the process writes is named by one field only; paths
are compared as they are written, without opening anything.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator


def require_files_of_their_own(config: BaseModel, written: Collection[str]) -> None:
    """Check that no other field names a file that this process writes.

    Args:
        config: the whole configuration.
        written: the fields with such files, as errors name them; they may be unset.

    Raises:
        ValueError: two fields name one file.
    """
    places: dict[str, str] = {}
    found = dict(_places(config))
    for field in written:
        if (path := found.get(field)) is not None:
            if (other := places.get(path)) is not None:
                raise ValueError(f"{field}: {path} is the file of {other} too: name another")
            places[path] = field
    for other, path in found.items() if places else ():
        field = places.get(path, other)
        if field != other:
            raise ValueError(
                f"{field}: {path} is the file of {other} too, and would be overwritten: name "
                "another"
            )


def _places(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Yield each field with a path, and the path without detours."""
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _places(getattr(value, name), f"{field}.{name}" if field else name)
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from _places(one, f"{field}.{name}")
    elif isinstance(value, list | tuple):
        for index, one in enumerate(value):
            yield from _places(one, f"{field}[{index}]")
    elif isinstance(value, Path):
        yield field, os.path.normpath(value)
