"""Lists of the kubelet and the API server, read object by object as they arrive.

Owns :class:`ListReader` and :func:`read_list`. The author of a pod fills it with what the pod's
readers do not need (an object has up to 1.5 MiB), and a node or a page has hundreds of them.
Invariants: of a list that is longer than :data:`WHOLE_BYTES`, one object at a time is in memory,
beside what its reader keeps of each; an object, and not the list, is the longest piece of work
that holds the interpreter; a list counts only once its end was read.

Source: Kubernetes API conventions, "Lists and Simple kinds": an object with ``items``.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sds import threads

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

WHOLE_BYTES: Final = 4 << 20
"""A list up to here is held until its end, and not read again if it is the same as before."""
_OFF_LOOP_BYTES: Final = 256 << 10
_MOST_CHARACTERS: Final = 8 << 20
"""Of one object; in etcd it has at most 1.5 MiB."""
_MOST_BESIDE: Final = 1 << 20
"""Characters of all other fields of a list, which are kept until its end."""
_ITEMS: Final = "items"
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_DECODER: Final = json.JSONDecoder()
_Kept = TypeVar("_Kept")


class _Incomplete(Exception):  # noqa: N818  not an error: more has to come
    """What is there ends within a value."""


class ListReader:
    """Reads one list; see the module.

    Args:
        take: gets each object of the list; what it raises passes through.

    Attributes:
        fields: the other fields of the list, as far as they came.
    """

    __slots__ = (
        "_at",
        "_beside",
        "_enough",
        "_more",
        "_new",
        "_step",
        "_take",
        "_text",
        "_utf8",
        "fields",
    )

    def __init__(self, take: Callable[[Any], None]) -> None:
        self.fields: dict[str, Any] = {}
        self._take = take
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0
        self._beside = 0
        """Characters of the other fields."""
        self._more: list[str] = []
        """What came since, and is not worth another look yet."""
        self._new = 0
        """Its characters: counted as they come, however small the pieces are."""
        self._enough = 1
        """Characters that are: a long object is not tried again at each of its pieces."""
        self._step: Callable[[], None] = self._begin

    def feed(self, data: bytes) -> None:
        """Read what came.

        Raises:
            ValueError: it is not a list, or an object in it is too large.
        """
        text = self._utf8.decode(data)
        self._more.append(text)
        self._new += len(text)
        if self._new >= self._enough:
            self._read()

    def end(self) -> dict[str, Any]:
        """Everything came; the other fields of the list.

        Raises:
            ValueError: it is not a whole list.
        """
        self._more.append(self._utf8.decode(b"", final=True))
        self._read()
        if self._step != self._over:
            raise ValueError("it ends too early, or is not JSON")
        if self.fields.get(_ITEMS) is not None:
            raise ValueError("its items are not a list")
        return self.fields

    def _read(self) -> None:
        self._text = "".join((self._text[self._at :], *self._more))
        self._at, self._enough, self._new = 0, 1, 0
        self._more.clear()
        try:
            while self._next():
                self._step()
        except _Incomplete:
            left = len(self._text) - self._at
            if left > _MOST_CHARACTERS:
                raise ValueError("an object is too large, or is not JSON") from None
            self._enough = max(1, left)
        except RecursionError:
            raise ValueError("the JSON is nested too deeply") from None

    def _next(self) -> str:
        """The next character that is not white space; the empty string if there is none."""
        match = _SPACE.match(self._text, self._at)
        assert match is not None, "the pattern matches the empty text"
        self._at = match.end()
        return self._text[self._at : self._at + 1]

    def _expect(self, characters: str) -> str:
        """Pass one of these characters."""
        found = self._next()
        if not found:
            raise _Incomplete
        if found not in characters:
            raise ValueError(f"it is not JSON: {found!r} where one of {characters} belongs")
        self._at += 1
        return found

    def _value(self) -> Any:
        self._next()
        try:
            value, end = _DECODER.raw_decode(self._text, self._at)
        except ValueError:
            raise _Incomplete from None  # at the end of the list this is an error
        if end == len(self._text) and not isinstance(value, dict | list | str):
            raise _Incomplete  # a number may go on
        self._at = end
        return value

    # --- what comes next ------------------------------------------------------------------------

    def _begin(self) -> None:
        self._expect("{")
        self._step = self._first_name

    def _first_name(self) -> None:
        if self._next() == "}":
            self._at += 1
            self._step = self._over
        else:
            self._field()

    def _field(self) -> None:
        """A name, and the value unless that is the list itself."""
        if self._next() != '"':
            raise ValueError("a name in it is not text")
        begins = self._at
        try:
            name = self._value()
            self._expect(":")
            if name == _ITEMS and self._next() == "[":
                self._at += 1
                self._step = self._first_item
                return
            value = self._value()
        except _Incomplete:
            self._at = begins
            raise
        self._beside += self._at - begins
        if self._beside > _MOST_BESIDE:
            raise ValueError("there is too much beside its items")
        self.fields[name] = value
        self._step = self._after_field

    def _after_field(self) -> None:
        self._step = self._field if self._expect(",}") == "," else self._over

    def _first_item(self) -> None:
        if self._next() == "]":
            self._at += 1
            self._step = self._after_field
        else:
            self._item()

    def _item(self) -> None:
        self._take(self._value())
        self._step = self._after_item

    def _after_item(self) -> None:
        self._step = self._item if self._expect(",]") == "," else self._after_field

    def _over(self) -> None:
        raise ValueError("something follows its end")


def at_most(most: int, kept: list[_Kept], read: Callable[[Any], _Kept]) -> Callable[[Any], None]:
    """Make a ``take`` for :func:`read_list` that keeps what is read of each object.

    Args:
        most: objects; one more raises ValueError, since the list may never end.
        kept: gets what ``read`` returns.
        read: takes an object; what it raises passes through.
    """

    def take(item: Any) -> None:
        if len(kept) >= most:
            raise ValueError("the list does not end")
        kept.append(read(item))

    return take


async def read_list(
    chunks: AsyncGenerator[bytes, None], take: Callable[[Any], None], *, known: bytes = b""
) -> tuple[dict[str, Any], bytes] | None:
    """Read a list as it arrives; long ones off the event loop.

    Args:
        chunks: of the answer.
        take: gets each object of the list, perhaps in a thread.
        known: SHA-256 of an answer that need not be read again.

    Returns:
        The other fields of the list, and the SHA-256 of the whole answer where that is short, else
        nothing; None if it is the one that is known.

    Raises:
        ValueError: it is not a list; also what ``take`` and ``chunks`` raise.
    """
    reader = ListReader(take)
    held = bytearray()
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            held += chunk
            if len(held) > WHOLE_BYTES:
                await threads.KUBERNETES.run(reader.feed, bytes(held))
                held.clear()
                break
        else:
            return await _short(reader, bytes(held), known)
        async for chunk in chunks:
            await threads.KUBERNETES.run(reader.feed, chunk)
    return await threads.KUBERNETES.run(reader.end), b""


async def _short(
    reader: ListReader, data: bytes, known: bytes
) -> tuple[dict[str, Any], bytes] | None:
    if len(data) < _OFF_LOOP_BYTES:
        return _read_whole(reader, data, known)
    return await threads.KUBERNETES.run(_read_whole, reader, data, known)


def _read_whole(
    reader: ListReader, data: bytes, known: bytes
) -> tuple[dict[str, Any], bytes] | None:
    digest = hashlib.sha256(data).digest()
    if digest == known:
        return None
    reader.feed(data)
    return reader.end(), digest
