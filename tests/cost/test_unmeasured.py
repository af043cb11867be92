"""Tests of this folder run untraced, also in a worker of ``make test``, which measures coverage."""

from __future__ import annotations

import sys
import threading


def test_nothing_traces_a_test_that_is_not_measured() -> None:
    assert sys.gettrace() is None
    assert threading.gettrace() is None
