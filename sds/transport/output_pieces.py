"""Pieces of output that waits: a view of a part keeps the whole object in memory.

Owns how such an object is cut. Invariants: of what was sent, at most as much stays in memory as is
still to be sent; :func:`kept` says how much that is, so that it is counted. Otherwise a client
could let all of a message but its last byte be sent, and make us keep the whole for one byte.
"""

from __future__ import annotations

from typing import cast


def kept(piece: memoryview) -> int:
    """Return how many bytes the piece keeps in memory: all of the object of which it is a part."""
    return len(cast("bytes", piece.obj))


def rest_of(piece: memoryview, at: int) -> memoryview:
    """Return what follows the first ``at`` bytes: in an object of its own if that is the less."""
    rest = piece[at:]
    return memoryview(bytes(rest)) if 2 * len(rest) <= kept(piece) else rest


def alone(piece: memoryview) -> bytes | memoryview:
    """Return the piece in an object that has nothing else."""
    return piece if len(piece) == kept(piece) else bytes(piece)
