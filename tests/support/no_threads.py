"""A system that gives no more threads, as at a limit on processes (RLIMIT_NPROC, pids.max)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def give_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no thread start from now on."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
