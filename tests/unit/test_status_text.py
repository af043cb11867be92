"""The text of a status, as it goes onto the wire: every client gets it, or a part of it."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import pytest
from hpack import Decoder

from sds.transport.headers import MAX_SAID, trailers


def sent(message: str) -> str:
    """What a trailers-only response says, still encoded."""
    block: Any = Decoder().decode(trailers(7, message, alone=True))
    fields: dict[str, str] = dict(block)
    assert fields["grpc-status"] == "7"
    return fields.get("grpc-message", "")


@pytest.mark.parametrize(
    "message", ["", "not here", "50 % off: ä", "x" * MAX_SAID, "ä" * (MAX_SAID // 6), "a\n\ud800b"]
)
def test_what_fits_is_sent_as_it_is(message: str) -> None:
    readable = message.encode(errors="replace").decode()
    assert unquote(sent(message), errors="strict") == readable


@pytest.mark.parametrize("letter", ["x", "%", "ä", "字", "🔑", "\ud800"])
@pytest.mark.parametrize("shift", range(12))
@pytest.mark.parametrize("length", [MAX_SAID, 20_000])
def test_a_long_text_ends_between_two_characters(letter: str, shift: int, length: int) -> None:
    message = "p" * shift + letter * length + "p"
    said = sent(message)
    assert MAX_SAID - 24 < len(said) <= MAX_SAID
    text = unquote(said, errors="strict")
    assert text.endswith("…")
    assert message.encode(errors="replace").decode().startswith(text[:-1])
