"""The wall clock of one process, set by the test; monotonic time and boottime go on as they are.

``SteppedClock(folder)``: start the process with ``clock.env``, then ``clock.step(3)`` sets its
clock three seconds ahead of the machine's. It works for Python and for Envoy alike (``wallclock.c``
says why libfaketime does not).
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support import need

_SOURCE = Path(__file__).with_name("wallclock.c")


class SteppedClock:
    """See the module; skips the test if there is no C compiler."""

    def __init__(self, folder: Path) -> None:
        library, self._file = folder / "wallclock.so", folder / "time"
        subprocess.run(
            [need.tool("cc"), "-shared", "-fPIC", "-O1", "-o", library, _SOURCE], check=True
        )
        self.step(0)
        self.env = {"LD_PRELOAD": str(library), "TEST_WALL_CLOCK": str(self._file)}

    def step(self, seconds: int) -> None:
        """So far ahead of the machine's clock (behind it where negative), from now on."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}")
        new.replace(self._file)
