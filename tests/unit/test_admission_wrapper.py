"""The wrapper's command line, what it reads, and what it does without an answer."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sds.admission import wrapper
from sds.admission.wrapper import CommandLine, NotRead, read_document

if TYPE_CHECKING:
    from collections.abc import Sequence

# As containerd 1.6's shim writes them.
SHIM = ["--root", "/run/runc/k8s.io", "--log", "/b/log.json", "--log-format", "json"]
CREATE = [*SHIM, "create", "--bundle", "/b", "--pid-file", "/b/init.pid", "c1"]
EXEC = [*SHIM, "exec", "--process", "/b/p", "--detach", "--pid-file", "/b/x.pid", "c1"]


@pytest.mark.parametrize("line", [CREATE, EXEC, [*SHIM, "run", "--bundle", "/b", "c1"]])
def test_create_run_and_exec_are_asked_about(line: Sequence[str]) -> None:
    read = CommandLine(line)
    assert read.asked
    assert read.rest == ["c1"]
    assert read.document == ("/b/p" if "exec" in line else "/b/config.json")
    # What runs says the same, and each option is one word.
    assert CommandLine(read.arguments).arguments == read.arguments
    assert "--root=/run/runc/k8s.io" in read.arguments


@pytest.mark.parametrize(
    "line",
    [
        [*SHIM, "start", "c1"],
        [*SHIM, "delete", "--force", "c1"],
        [*SHIM, "kill", "--all", "c1", "9"],
        [*SHIM, "update", "--resources", "-", "c1"],
        ["--version"],
        ["features"],
    ],
)
def test_what_cannot_enter_a_container_passes_as_it_is(line: list[str]) -> None:
    read = CommandLine(line)
    assert not read.asked
    assert read.arguments[-1] == line[-1]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ([*SHIM, "checkpoint", "c1"], "the command 'checkpoint' is not allowed"),
        ([*SHIM, "restore", "c1"], "is not allowed"),
        ([*SHIM, "init"], "is not allowed"),
        ([*SHIM, "Create", "c1"], "is not allowed"),
        ([], "there is no command"),
        (SHIM, "there is no command"),
        (["--root"], "has no value"),
        (["--root", "/a", "--root", "/b", "state", "c1"], "given twice"),
        (["-root", "/a", "state", "c1"], "is unknown"),
        (["--criu", "/evil", "state", "c1"], "is unknown"),
        (["--debug=false", "state", "c1"], "takes no value"),
        ([*SHIM, "create", "--bundle", "/a", "--bundle=/b", "c1"], "given twice"),
        ([*SHIM, "create", "-b", "/a", "c1"], "is unknown"),
        ([*SHIM, "create", "c1", "c2"], "exactly one container"),
        ([*SHIM, "create", "c1", "--bundle", "/b"], "exactly one container"),
        ([*SHIM, "create", "--bundle", "/b"], "exactly one container"),
        ([*SHIM, "exec", "--process", "/p", "c1", "sh"], "exactly one container"),
        ([*SHIM, "exec", "--process", "/p", "--cap", "CAP_SYS_ADMIN", "c1"], "is unknown"),
        ([*SHIM, "exec", "--process", "/p", "--", "c1"], "is unknown"),
    ],
)
def test_everything_else_is_refused(line: list[str], why: str) -> None:
    with pytest.raises(NotRead, match=why):
        CommandLine(line)


def test_exec_without_a_process_file_is_refused() -> None:
    with pytest.raises(NotRead, match="without --process"):
        _ = CommandLine([*SHIM, "exec", "c1"]).document


COMMANDS = "create exec run start checkpoint c1"
OPTIONS = "--bundle --bundle=/x --process - -- --detach --pid-file = --root="
WORDS = st.sampled_from([*SHIM, *COMMANDS.split(), *OPTIONS.split()])


@given(st.lists(WORDS, max_size=9))
def test_what_runs_is_what_was_read(line: list[str]) -> None:
    try:
        read = CommandLine(line)
    except NotRead:
        return
    again = CommandLine(read.arguments)
    assert (again.command, again.inner, again.rest) == (read.command, read.inner, read.rest)
    assert again.options == read.options


def test_documents_are_ordinary_files_of_bounded_size(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(b"{}")
    assert read_document(str(file)) == b"{}"
    link, pipe, large = (tmp_path / name for name in ("link", "pipe", "large"))
    link.symlink_to(file)
    os.mkfifo(pipe)
    with large.open("wb") as whole:
        whole.truncate((4 << 20) + 1)
    for path, why in (
        (link, "cannot be read"),
        (pipe, "not an ordinary file"),
        (large, "larger than"),
        (tmp_path, "cannot be read"),
        (tmp_path / "none", "cannot be read"),
        (Path("/x\0y"), "cannot be read"),
    ):
        with pytest.raises(NotRead, match=why):
            read_document(str(path))


def run(arguments: Sequence[str], *, enforce: bool, runtime: str = "/bin/echo") -> str:
    """The script as a process; what it says."""
    call = f"main(sys.argv[1:], runtime={runtime!r}, service='/none/sock', enforce={enforce})"
    source = Path(wrapper.__file__).read_text() + "\n" + call
    done = subprocess.run(
        [sys.executable, "-IS", "-c", source, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{done.returncode} {done.stdout}{done.stderr}"


def test_without_an_answer_it_says_no_where_containerd_looks(tmp_path: Path) -> None:
    """The standard library alone is enough, and its errors are runc's in form."""
    (tmp_path / "config.json").write_text("{}")
    log = tmp_path / "log.json"
    line = ["--log", str(log), "create", "--bundle", str(tmp_path), "c1"]
    said = run(line, enforce=True)
    assert said.startswith("1 refused by sds admission: the admission service at /none/sock does")
    entry = json.loads(log.read_text())
    assert (entry["level"], entry["msg"] in said) == ("error", True)
    assert run(line, enforce=False) == f"0 --log={log} create --bundle={tmp_path} c1\n"
    assert run(["start", "c1"], enforce=True) == "0 start c1\n"
    said = run(["start", "c1"], enforce=True, runtime="/none/runc")
    assert said.startswith("1 refused by sds admission: the runtime /none/runc cannot be executed")


def test_it_waits_for_a_service_that_has_a_queue_of_others(tmp_path: Path) -> None:
    """A node that starts has a hundred containers at once; a full queue is no refusal."""
    place = tmp_path / "s"
    (tmp_path / "p").write_text("{}")
    line = CommandLine([*SHIM, "exec", "--process", str(tmp_path / "p"), "c1"])
    with socket.socket(socket.AF_UNIX) as service, socket.socket(socket.AF_UNIX) as other:
        service.bind(str(place))
        service.listen(0)
        other.connect(str(place))
        with socket.socket(socket.AF_UNIX) as one_more:
            one_more.settimeout(0)
            with pytest.raises(BlockingIOError):
                one_more.connect(str(place))
        said: list[str] = []

        def asked_in_a_thread() -> None:
            try:
                said.append(wrapper.ask(str(place), line))
            except OSError as error:
                said.append(repr(error))

        asking = threading.Thread(target=asked_in_a_thread)
        asking.start()
        asking.join(0.3)
        assert not said, "it waits"
        service.accept()[0].close()
        asked = service.accept()[0]
        with asked:
            asked.recv(1 << 16)
            asked.sendall(b"no: because\n")
        asking.join()
    assert said == ["because"]
