"""The table of descriptors is large before anybody comes."""

import subprocess
import sys

TAKE = """
import resource
from sds.descriptors import take_all

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 300), hard))
before = [line for line in open("/proc/self/status") if line.startswith("FDSize")]
assert take_all() == hard == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
after = [line for line in open("/proc/self/status") if line.startswith("FDSize")]
print(hard, before[0].split()[1], after[0].split()[1])
"""


def test_all_descriptors_are_taken_and_the_table_has_room_for_them() -> None:
    ran = subprocess.run([sys.executable, "-c", TAKE], capture_output=True, text=True, check=True)
    hard, before, after = map(int, ran.stdout.split())
    assert before < after
    assert after >= min(hard, 16_384)
