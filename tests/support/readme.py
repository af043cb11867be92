"""The commands of a Markdown page, as a reader would type them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.support.node import free_port

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PORT = re.compile(r"(?<=127\.0\.0\.1:)\d+")


def all_blocks(page: Path) -> list[str]:
    """The ``sh`` blocks of the whole page, in order."""
    return _BLOCK.findall(page.read_text())


def blocks(page: Path, heading: str) -> list[str]:
    """The ``sh`` blocks under a heading (of any level), in order."""
    text = page.read_text()
    parts = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        if title == heading:
            return _BLOCK.findall(body)
    message = f"{page} has no heading {heading!r}"
    raise AssertionError(message)


def on_free_ports(commands: Sequence[str]) -> list[str]:
    """The commands with free loopback ports in place of those of the text, each wherever it is.

    The texts tell readers to do so if another program uses one; another run of these tests may.
    """
    named = dict.fromkeys(_PORT.findall("".join(commands)))
    free: set[int] = set()
    while len(free) < len(named):
        free.add(free_port())
    ports = dict(zip(named, map(str, free), strict=True))
    return [_PORT.sub(lambda port: ports[port[0]], command) for command in commands]
