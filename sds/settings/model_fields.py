"""Finds the fields of a settings model, so that errors name them as they are in the file.

Owns the walk through the types of models. Invariant: the results contain only names that a file can
have, and never pydantic's names for the members of a union.
"""

from __future__ import annotations

import difflib
import types
import typing
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MAX_PLACES: Final = 3


def unknown_field(name: str, here: Iterable[Any], model: type[BaseModel]) -> str:
    """Say what a person probably meant by an unknown field.

    Args:
        name: the field's name in the file.
        here: the types of the block that contains it.
        model: the model of the whole file.

    Returns:
        Words that follow "unknown field".
    """
    known = sorted(set(field_names(here)))
    if name in known:  # a block has one of several forms, by its kind
        return "; this block has it with another kind"
    spellings = {_spelling(one): one for one in known}
    meant = spellings.get(_spelling(name))
    if meant is None:
        # Indented too little or too much, which is more likely than a typing error.
        if places := list(dict.fromkeys(_places(model, _spelling(name)))):
            more = ", …" if len(places) > _MAX_PLACES else ""
            return f" here; there is {', '.join(places[:_MAX_PLACES])}{more}: check the indentation"
        meant = next(iter(difflib.get_close_matches(name, known, n=1)), None)
    return f", did you mean {meant}?" if meant else f"; known are {', '.join(known)}"


def _spelling(name: str) -> str:
    return name.strip().casefold().replace("-", "_").replace(" ", "_")


def _places(kind: Any, name: str, path: str = "", above: tuple[Any, ...] = ()) -> Iterator[str]:
    """Yield the paths of the fields of this name, from the top of the file."""
    for member in members(kind):
        if typing.get_origin(member) in {list, tuple, set, frozenset}:
            yield from _places(typing.get_args(member)[0], name, f"{path}[]", above)
        elif isinstance(member, type) and issubclass(member, BaseModel) and member not in above:
            for own, field in member.model_fields.items():
                shown = field.alias or own
                there = f"{path}.{shown}" if path else shown
                if _spelling(shown) == name:
                    yield there
                yield from _places(field.annotation, name, there, (*above, member))


def walk(
    model: type[BaseModel], location: Iterable[int | str]
) -> tuple[tuple[int | str, ...], list[Any]]:
    """Return the location as it is in the file, and the types that may be there.

    pydantic's own steps, the names of a union's members, are not in the file.
    """
    here: list[Any] = [model]
    shown: list[int | str] = []
    for step in location:
        following = [part for kind in here for part in _inside(kind, step)]
        if not following and len(here) > 1 and not isinstance(step, int):
            continue
        shown.append(step)
        here = [part for kind in following for part in members(kind)]
    return tuple(shown), here


def _inside(kind: Any, step: int | str) -> tuple[Any, ...]:
    """Return the possible types of the value at ``step`` in a value of this type."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return tuple(
            field.annotation
            for name, field in kind.model_fields.items()
            if step in {name, field.alias}
        )
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is dict:
        return arguments[1:]
    return arguments if isinstance(step, int) else ()


def field_names(kinds: Iterable[Any]) -> list[str]:
    """Return the names of the fields of the models among these types."""
    return [
        field.alias or name
        for kind in kinds
        if isinstance(kind, type) and issubclass(kind, BaseModel)
        for name, field in kind.model_fields.items()
    ]


def members(kind: Any) -> list[Any]:
    """Return the members of unions and annotated types, however deep; another type is its own."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return members(typing.get_args(kind)[0])
    if origin in {typing.Union, types.UnionType}:
        return [part for member in typing.get_args(kind) for part in members(member)]
    return [kind]
