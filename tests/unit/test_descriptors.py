"""The table of descriptors is large before anybody comes, and nobody passes any."""

from __future__ import annotations

import array
import errno
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sds import descriptors
from sds.descriptors import refuse_passed
from sds.unix_sockets import listening

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


def test_nobody_passes_a_descriptor_whose_end_holds_up_who_receives_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel closes it in the receiver's name: SO_LINGER lets the sender say for how long."""
    path = tmp_path / "a.sock"
    with listening(path, 0o600) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        accepted, _ = listener.accept()
        with accepted, Path("/dev/null").open("rb") as passed:
            rights = array.array("i", [passed.fileno()])
            if "SO_PASSRIGHTS" in caplog.text:  # an older kernel: it is said
                return
            with pytest.raises(PermissionError):
                client.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def test_what_the_kernel_cannot_refuse_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    class OldKernel(socket.socket):
        def setsockopt(self, *_: object) -> None:
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")

    descriptors._say_once.cache_clear()
    with OldKernel(socket.AF_UNIX) as old:
        refuse_passed(old)
        refuse_passed(old)
    descriptors._say_once.cache_clear()
    assert caplog.text.count("SO_PASSRIGHTS") == 1
