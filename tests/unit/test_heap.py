"""Free memory goes back to the system, locked or not."""

import json
import subprocess
import sys

import pytest

from sds.secrets.heap_trim import locked_heap

MAPS = ["5626b0000000-5626b0100000 rw-p 00000000 00:00 0    [heap]", "7f00-7f10 rw-p 0 00:00 0"]
CROWD = """
import json
import sys
from sds.secrets.hardening import harden
from sds.secrets.heap_trim import give_back

def figures():
    lines = open("/proc/self/status").read().splitlines()
    found = dict(line.split(":") for line in lines)
    return [int(found[name].split()[0]) for name in ("RssAnon", "VmLck")]

harden()
kept = []
crowd = [bytes(61_000) for _ in range(800)]  # 48 MB, below what glibc maps on its own
stays = bytes(61_000) if sys.argv[1] == "kept" else None  # above the crowd: no end comes down
full = figures()
del crowd
before = figures()
give_back()
print(json.dumps([full, before, figures()]))
"""


@pytest.mark.parametrize("top", ["kept", "free"])
def test_what_a_crowd_leaves_goes_back_and_what_was_locked_is_locked_again(top: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", CROWD, top], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stderr == ""  # it would say that memory is not locked any more
    (full, _), (_, locked), (after, locked_again) = json.loads(ran.stdout)
    assert full - after > 30_000  # KiB
    assert bool(locked_again) == bool(locked)
    assert locked_again > locked - 50_000


def test_a_heap_is_locked_if_all_of_it_can_be() -> None:
    addresses = range(0x5626B0000000, 0x5626B0100000)
    assert locked_heap(MAPS, ["Name: sds", "VmLck:\t    1024 kB"]) == addresses
    assert locked_heap(MAPS, ["VmLck:\t    1023 kB"]) is None
    assert locked_heap(MAPS, ["VmLck:\t    0 kB"]) is None
    assert locked_heap([], []) is None
