"""The wall clock of one process, set by the test; monotonic time and boottime go on as they are.

``SteppedClock(file)``: start the process with ``clock.env``, then ``clock.step(3)`` sets its clock
three seconds ahead of the machine's. ``envoy_clock`` is the same for an Envoy, which libfaketime
cannot start (``wallclock.c`` says why).
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support import need

_LIBRARY = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
_SOURCE = Path(__file__).with_name("wallclock.c")


class SteppedClock:
    """See the module; skips the test where there is no libfaketime."""

    def __init__(self, file: Path, *, env: dict[str, str] | None = None) -> None:
        if env is None and not _LIBRARY.is_file():
            need.missing("libfaketime")
        self._file = file
        self.step(0)
        self.env = env or {
            "LD_PRELOAD": str(_LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            # The file is read at every look at the clock.
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def step(self, seconds: int) -> None:
        """So far ahead of the machine's clock (behind it where negative), from now on."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}")
        new.replace(self._file)


def envoy_clock(folder: Path) -> SteppedClock:
    """A clock for an Envoy; skips the test where there is no C compiler."""
    library, file = folder / "wallclock.so", folder / "time"
    subprocess.run([need.tool("cc"), "-shared", "-fPIC", "-O1", "-o", library, _SOURCE], check=True)
    return SteppedClock(file, env={"LD_PRELOAD": str(library), "TEST_WALL_CLOCK": str(file)})
