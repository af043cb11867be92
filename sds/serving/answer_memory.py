"""The memory of an answer that is being made, which counts for the caller that asked.

A client chooses how large one answer is, and how many it asks for at once. Owns
:class:`AnswerMemory`. Invariant: the memory of an answer counts for its caller while the answer is
made, and is bounded.
"""

from __future__ import annotations

from typing import Any, Final, Self

from sds.errors import LimitError

MOST_ANSWER_BYTES: Final = 4 * 1024 * 1024
"""The largest message that gRPC clients accept by default."""


class AnswerMemory:
    """Counts the memory of an answer, for the length of the ``with`` block that makes it.

    Args:
        context: the call's context; a context of ``grpc.aio`` has no connection and no budget.
        advice: what to do about an answer that is too large.
    """

    __slots__ = ("_advice", "_answer", "_bytes", "_connection")

    def __init__(self, context: Any = None, *, advice: str = "") -> None:
        self._connection = getattr(context, "connection", None)
        self._advice = advice
        self._bytes = self._answer = 0

    def __enter__(self) -> Self:
        """Count from now on."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop counting: from now on the code that sends the answer counts it."""
        self.begin()

    def begin(self) -> None:
        """Begin the answer anew, with nothing counted."""
        if self._connection is not None and self._bytes:
            self._connection.hold(-self._bytes)
        self._bytes = self._answer = 0

    def work(self, count: int) -> None:
        """Count bytes of work that do not go out.

        Raises:
            LimitError: the owner uses too much memory.
        """
        self._bytes += count
        if self._connection is not None:
            self._connection.hold(count)

    def answer(self, count: int) -> None:
        """Count bytes of the answer.

        Raises:
            LimitError: the answer is too large, or the owner uses too much memory.
        """
        self.work(count)
        self._answer += count
        if self._answer > MOST_ANSWER_BYTES:
            raise LimitError(
                f"the answer has more than {MOST_ANSWER_BYTES} bytes", advice=self._advice
            )
