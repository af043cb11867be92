"""The client's settings (RFC 9113, section 6.5).

Owns how a SETTINGS frame is checked and what it changes. Invariant: the values are checked in order
and none is skipped, even if a later one of the same frame replaces it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds.errors import Http2Error
from sds.transport import frames
from sds.transport.frames import ErrorCode

if TYPE_CHECKING:
    from sds.transport.outgoing import Outgoing

_SETTING_BYTES: Final = 6


def apply_settings(payload: memoryview, out: Outgoing) -> None:
    """Apply the settings of one frame.

    Args:
        payload: the payload of a SETTINGS frame without ACK.
        out: the connection's output, which obeys the settings.

    Raises:
        Http2Error: the frame or a value is not allowed.
    """
    if len(payload) % _SETTING_BYTES:
        raise Http2Error("SETTINGS are malformed", code=ErrorCode.FRAME_SIZE_ERROR)
    for identifier, value in frames.iter_settings(payload):
        match identifier:
            case frames.SETTING_INITIAL_WINDOW_SIZE:
                out.set_initial_window(value)
            case frames.SETTING_MAX_FRAME_SIZE:
                if not frames.DEFAULT_FRAME_SIZE <= value <= frames.MAX_FRAME_SIZE:
                    raise Http2Error(
                        f"a frame size of {value} is not allowed", code=ErrorCode.PROTOCOL_ERROR
                    )
            case frames.SETTING_ENABLE_PUSH:
                if value > 1:
                    raise Http2Error(
                        "ENABLE_PUSH is neither 0 nor 1", code=ErrorCode.PROTOCOL_ERROR
                    )
            case frames.SETTING_HEADER_TABLE_SIZE:
                # The next block sets our table's size to 0, which is never above the smallest value
                # that came in between (RFC 7541, section 4.2).
                out.table_changed = True
            case _:
                pass
