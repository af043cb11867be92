"""Where the program begins: before anything is loaded.

Invariant: an agent that will execute itself again for its allocator
(:func:`sds.secrets.allocator.use_wiping_allocator`) does so with nothing loaded but a bare
interpreter: all of that would be done twice. Everything else is :mod:`sds.cli`'s.
"""

from __future__ import annotations

import gc
import os
import sys

from sds.secrets.allocator import has_meaning, use_wiping_allocator

_ENDS_BY_ITSELF = frozenset({"--check-config", "--help", "-h"})
"""With these ``sds agent`` makes no keys."""


def main() -> None:
    """Run the command line ``sys.argv``."""
    # No package that happens to be installed sees our settings, or is looked for (12 ms).
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    if (
        sys.argv[1:2] == ["agent"]
        and _ENDS_BY_ITSELF.isdisjoint(sys.argv)
        and has_meaning(os.environ)  # the command itself refuses the others
    ):
        use_wiping_allocator()
    if sys.argv[1:2] == ["agent"]:
        gc.disable()  # modules stay; the command switches it on again (a tenth of a cold start)
    from sds.cli import main as command_line  # noqa: PLC0415  measured: see the module

    command_line(prog_name="sds")
