"""Memory of an answer that is being made, on the budget of who asked.

A client chooses how much one answer has, and how many it asks for at once. Owns :class:`Held`.
Invariant: what an answer takes while it is made counts for its caller, and is bounded.
"""

from __future__ import annotations

from typing import Any, Final, Self

from sds.errors import LimitError

MOST_ANSWER_BYTES: Final = 4 * 1024 * 1024
"""What clients of gRPC take, unless they are told otherwise."""


class Held:
    """See the module; the block in which it is used makes the answer.

    Args:
        context: of the call; one of ``grpc.aio`` has no connection, and no budget.
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
        """The answer is made: who sends it counts it."""
        self.begin()

    def begin(self) -> None:
        """The answer is made anew: nothing of it is there."""
        if self._connection is not None and self._bytes:
            self._connection.hold(-self._bytes)
        self._bytes = self._answer = 0

    def work(self, count: int) -> None:
        """So many bytes more that do not go out.

        Raises:
            LimitError: the owner holds too much.
        """
        self._bytes += count
        if self._connection is not None:
            self._connection.hold(count)

    def answer(self, count: int) -> None:
        """So many bytes more of the answer.

        Raises:
            LimitError: the answer is too large, or the owner holds too much.
        """
        self.work(count)
        self._answer += count
        if self._answer > MOST_ANSWER_BYTES:
            raise LimitError(
                f"the answer has more than {MOST_ANSWER_BYTES} bytes", advice=self._advice
            )
