"""Refuses every call of an unrecognised caller, except "who am I?", before any handler runs.

Owns :class:`Gate`, which a server asks before each call. Invariant: no handler runs, and no message
of a call is parsed, for a caller that is not recognised; that includes reflection and health.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from sds.errors import WorkloadError, without_frames
from sds.workload import whoami
from sds.workload.connection_caller import entitlement_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sds.transport.call import Call

_PUBLIC = frozenset({whoami.METHOD})


class Gate:
    """Lets recognised callers pass; waits for those that may still be recognised."""

    def __init__(self, refused: Callable[[str, WorkloadError], None]) -> None:
        """Make a gate; ``refused`` gets the path of each refused call, and why."""
        self._refused = refused

    async def __call__(self, call: Call) -> None:
        """Return if the call may go on; else end it with PERMISSION_DENIED."""
        if call.path in _PUBLIC:
            return
        try:
            entitlement = await entitlement_of(call)
            if entitlement.ended is not None:
                raise entitlement.ended
        except WorkloadError as error:
            self._refused(call.path, without_frames(error))  # the error may outlive the call
            await call.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        call.owner.recognise()
