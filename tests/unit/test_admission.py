"""``sds admission`` without a runtime: what it judges, remembers and checks."""

from __future__ import annotations

import ast
import asyncio
import copy
import json
import sys
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sds.admission import memory_file
from sds.admission.memory_file import Memory, MemoryFile
from sds.admission.node_check import check_node, containerd_findings, kubelet_findings
from sds.admission.question import MOST_DOCUMENT, Question, read_question
from sds.admission.script import script
from sds.admission.server import QuestionServer
from sds.admission.service import RuntimeAdmission
from sds.admission.settings import AdmissionConfig
from sds.clock import SystemClock
from sds.commands.admission import admission
from sds.errors import ConfigurationError, PolicyNotInForceError, SdsError, WorkloadError
from sds.operations.instruments import AdmissionInstruments
from sds.operations.metrics.families import UNADMITTED, UNREAD
from sds.policy.holder import PolicyHolder
from sds.policy.succession import PolicySuccession
from sds.policy.trust import Epoch
from sds.workload.cri.canonical import Surroundings, canonical, executed
from sds.workload.cri.runtime import Listed
from sds.workload.cri.settings import PodContents
from tests.support.clock import FakeClock
from tests.support.policies import DOMAIN, Signatory, document, sign, trusting
from tests.support.refusals import refused
from tests.support.source import modules

if TYPE_CHECKING:
    from pathlib import Path

UID = "f8c23ee5-a81d-4e76-a51e-0ce6edfa6c3a"
SANDBOX, CONTAINER = "ad" * 32, "6e" * 32
IMAGE = "sha256:" + "f9" * 32


def spec(identifier: str, *, name: str = "", args: str = "/app") -> dict[str, Any]:
    """As containerd writes it, shortened."""
    kind = "container" if name else "sandbox"
    ipc = {"type": "ipc", "path": "/proc/77/ns/ipc"} if name else {"type": "ipc"}
    annotations = {"container-type": kind, "sandbox-id": SANDBOX, "sandbox-uid": UID}
    if name:
        annotations["container-name"] = name
    return {
        "ociVersion": "1.0.2",
        "process": {"args": [args], "env": ["A=1"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs"},
        "mounts": [],
        "annotations": {f"io.kubernetes.cri.{key}": value for key, value in annotations.items()},
        "linux": {"cgroupsPath": f"/kubepods/pod{UID}/{identifier}", "namespaces": [ipc]},
    }


def digest(identifier: str, document: dict[str, Any], name: str = "") -> str:
    around = Surroundings(pod_uid=UID, sandbox_id=SANDBOX, sandbox_pid=77 if name else 0)
    image = IMAGE if name else "pause:1"
    return canonical(name, image, document, around, container_id=identifier).digest


class NodeInTest:
    """Stands for the runtime and the policy."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.pid_file = folder / "init.pid"
        self.pid_file.write_text("77")
        self.pods: tuple[PodContents, ...] | None = ()
        self.clock = FakeClock()
        self.images = {CONTAINER: IMAGE, "c2": IMAGE, "c3": "localhost/by-name:1"}
        config = {
            "trust_domain": "example.org",
            "policy": {"file": "/p", "keys": [Signatory("alice").public.pem]},
            "runtime": {"sandbox_image": "pause:1"},
            **changes,
        }
        self.config = AdmissionConfig.model_validate(config)
        self.memory = Memory()
        self.admission = RuntimeAdmission(
            self.config,
            policy=self,  # type: ignore[arg-type]
            runtime=self,  # type: ignore[arg-type]
            memory=self.memory,
            file=MemoryFile(folder),
            clock=self.clock,
        )

    def in_force(self) -> NodeInTest:
        if self.pods is None:
            raise PolicyNotInForceError("it is over", reason="policy_expired")
        return self

    async def containers(self, identifier: str) -> tuple[Listed, ...]:
        image = self.images.get(identifier)
        if image is None:
            return ()
        return (
            Listed(id=identifier, sandbox_id=SANDBOX, name="x", attempt=0, image=image, alive=True),
        )

    async def sandboxes(self) -> frozenset[str]:
        return frozenset()

    async def create(self, identifier: str, document: dict[str, Any], **changes: Any) -> None:
        question = {"command": "create", "has_input": False, "pid_file": str(self.pid_file)}
        await self.admission.decide(
            Question(identifier=identifier, document=document, **{**question, **changes})
        )


@pytest.fixture
def node(tmp_path: Path) -> NodeInTest:
    node = NodeInTest(tmp_path)
    main = spec(CONTAINER, name="main")
    node.pods = (
        PodContents(
            sandbox=digest(SANDBOX, spec(SANDBOX)),
            containers=(digest(CONTAINER, main, "main"),),
            execs=(executed("main", main["process"]).digest,),
        ),
    )
    return node


YEAR = 365 * 86400.0


@pytest.mark.parametrize(
    ("earlier", "steps", "hours", "kept"),
    [
        pytest.param(0, 3600.0, 0, True, id="set forward while they start"),
        pytest.param(0, -YEAR, 0, True, id="set back while they start"),
        pytest.param(0, -YEAR, 1, False, id="set back, and they never started"),
        pytest.param(0, 0.0, 1, False, id="they never started"),
        pytest.param(10**9, 0.0, 0, False, id="of an earlier boot"),
    ],
)
async def test_what_the_runtime_does_not_list_is_forgotten_whatever_the_wall_clock_says(
    node: NodeInTest, earlier: float, steps: float, hours: int, *, kept: bool
) -> None:
    await node.create(SANDBOX, spec(SANDBOX))
    one = node.memory.sandboxes[SANDBOX]
    one = replace(one, admitted_at=one.admitted_at + earlier)
    node.memory.sandboxes |= {str(number): one for number in range(256)}
    node.clock.step(steps)
    await node.clock.advance(hours * 3600)
    await node.create(SANDBOX, spec(SANDBOX))
    assert ("0" in node.memory.sandboxes) is kept


async def test_a_listed_pod_and_its_listed_process(node: NodeInTest) -> None:
    with refused("admission_form", match="was not admitted here"):
        await node.create(CONTAINER, spec(CONTAINER, name="main"))
    await node.create(SANDBOX, spec(SANDBOX))
    await node.create(CONTAINER, spec(CONTAINER, name="main"))
    await node.create(CONTAINER, spec(CONTAINER)["process"], command="exec")
    with refused("admission_not_listed", match="no rule lists the process"):
        await node.create(CONTAINER, {"args": ["/sh"]} | SHELL, command="exec")
    with refused("admission_form", match="it has a terminal"):
        await node.create(CONTAINER, {**SHELL, "terminal": True}, command="exec")
    # The policy ends, and with it every new process; what runs goes on.
    node.pods = None
    with refused("admission_not_listed", match="it is over"):
        await node.create(CONTAINER, spec(CONTAINER)["process"], command="exec")


async def test_a_container_that_crashes_again_and_again_is_remembered_once(
    node: NodeInTest,
) -> None:
    await node.create(SANDBOX, spec(SANDBOX))
    again = [f"{number:064x}" for number in range(5)]
    node.images |= dict.fromkeys(again, IMAGE)
    for identifier in again:
        await node.create(identifier, spec(identifier, name="main"))
    assert set(node.memory.sandboxes[SANDBOX].containers) == {again[-1]}
    await node.create(again[-1], spec(CONTAINER)["process"], command="exec")


async def test_what_is_in_a_sandbox_is_not_forgotten_for_one_that_takes_its_id(
    node: NodeInTest,
) -> None:
    """The runtime refuses the second one, and others could have joined what runs since."""
    await node.create(SANDBOX, spec(SANDBOX))
    await node.create(SANDBOX, spec(SANDBOX))  # nothing is in it yet
    await node.create(CONTAINER, spec(CONTAINER, name="main"))
    before = node.memory.sandboxes[SANDBOX]
    with refused("admission_form", match="already"):
        await node.create(SANDBOX, spec(SANDBOX))
    other = spec(CONTAINER, name="main")
    other["process"]["args"] = ["other"]
    with refused("admission_form", match="already"):
        await node.create(CONTAINER, other)
    assert node.memory.sandboxes[SANDBOX] == before


async def test_what_cannot_be_written_for_whatever_reason_is_not_admitted(
    node: NodeInTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(MemoryFile, "write", broken)
    with pytest.raises(MemoryError):
        await node.create(SANDBOX, spec(SANDBOX))
    assert not node.memory.sandboxes


SHELL = {"env": ["A=1"], "cwd": "/", "user": {"uid": 0, "gid": 0}}


async def test_what_cannot_be_judged_is_refused(node: NodeInTest) -> None:
    await node.create(SANDBOX, spec(SANDBOX))
    main = spec(CONTAINER, name="main")
    for change, why in (
        ({"annotations": {}}, "container-type is missing"),
        ({"annotations": None}, "container-type is missing"),
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"process": {**main["process"], "terminal": True}}, "it has a terminal"),
        ({"linux": None}, "is not an object"),
    ):
        with refused("admission_form", "cri_unknown_shape", match=why):
            await node.create(CONTAINER, {**main, **change})
    for key, value, why in (
        ("container-type", "podsandbox", "neither a sandbox nor a container"),
        ("container-name", "", "has no name"),
        ("sandbox-id", "be" * 32, "was not admitted here"),
    ):
        other = copy.deepcopy(main)
        other["annotations"][f"io.kubernetes.cri.{key}"] = value
        with refused("admission_form", match=why):
            await node.create(CONTAINER, other)
    odd = spec(SANDBOX)
    odd["annotations"]["io.kubernetes.cri.sandbox-uid"] = "../x"
    with refused("admission_form", match="is not a pod's UID"):
        await node.create(SANDBOX, odd)
    for identifier in ("c3", "c4"):  # an image by its name; a container that CRI did not make
        with refused("admission_form", match="does not list container"):
            await node.create(identifier, spec(identifier, name="main"))
    with refused("admission_form", match="its standard input is open"):
        await node.create(CONTAINER, main, has_input=True)
    node.pid_file.write_text("x")
    with refused("admission_form", match="the sandbox's process is not known"):
        await node.create(CONTAINER, main)


async def test_what_is_admitted_must_be_remembered(node: NodeInTest, tmp_path: Path) -> None:
    (tmp_path / "memory.json").mkdir()
    with refused("admission_form", match="cannot be remembered"):
        await node.create(SANDBOX, spec(SANDBOX))
    assert not node.memory.sandboxes


async def test_a_trial_remembers_a_bounded_amount_of_each_pod(tmp_path: Path) -> None:
    """Without enforcement, the pod's author decides how much differs from start to start."""
    node = NodeInTest(tmp_path, enforce=False)
    with refused("admission_not_listed"):
        await node.create(SANDBOX, spec(SANDBOX))
    for number in range(300):
        identifier = f"{number:064x}"
        node.images[identifier] = IMAGE
        host = {"destination": "/x", "type": "bind", "source": f"/{number}" + "x" * 1000}
        document = spec(identifier, name="main") | {"mounts": [host]}
        with refused("admission_not_listed"):
            await node.create(identifier, document)
    assert 10 < len(node.memory.sandboxes[SANDBOX].containers) < 130
    assert (tmp_path / "memory.json").stat().st_size < 140_000
    assert MemoryFile(tmp_path).read() == node.memory


async def test_no_memory_is_written_that_is_too_long_to_be_read(
    node: NodeInTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.create(SANDBOX, spec(SANDBOX))
    monkeypatch.setattr(memory_file, "_MAX_BYTES", (tmp_path / "memory.json").stat().st_size + 10)
    with refused("admission_form", match="cannot be remembered: File too large"):
        await node.create(CONTAINER, spec(CONTAINER, name="main"))
    assert MemoryFile(tmp_path).read() == node.memory
    assert not node.memory.sandboxes[SANDBOX].containers


async def test_memory_is_what_was_written(node: NodeInTest, tmp_path: Path) -> None:
    await node.create(SANDBOX, spec(SANDBOX))
    await node.create(CONTAINER, spec(CONTAINER, name="main"))
    node.memory.seen, node.memory.policy = Epoch(number=7, digest=b"d" * 32), b"signed"
    file = MemoryFile(tmp_path)
    file.write(node.memory)
    assert file.read() == node.memory
    assert (tmp_path / "memory.json").stat().st_mode & 0o777 == 0o600
    for broken in ("", "{}", "[]", '{"format": 2}', '{"format": 1, "seen": 1}', "[" * 9999):
        (tmp_path / "memory.json").write_text(broken)
        with refused("configuration", match="cannot be used"):
            file.read()


# --- questions ----------------------------------------------------------------------------------


def question(document: bytes, **changes: str) -> bytes:
    """As the wrapper writes it."""
    fields = {"command": "create", "id": "c1", "input": "", "pid_file": "/b/init.pid"}
    header = {**fields, "bytes": str(len(document)), **changes}
    return "".join(f"{field}\0" for field in header.values()).encode() + document


async def ask(content: bytes) -> Question:
    reader = asyncio.StreamReader(limit=8192)
    reader.feed_data(content)
    reader.feed_eof()
    return await read_question(reader)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"{}",
        b"x" * 9000,
        question(b"{}", command="start"),
        question(b"{}", id="../x"),
        question(b"{}", id=""),
        question(b"{}", input="no"),
        question(b"{}", bytes=""),
        question(b"{}", bytes="-1"),
        question(b"{}", bytes="9" * 5000),
        question(b"{}", bytes="3"),
        question(b""),
        question(b"{}", bytes=str(MOST_DOCUMENT + 1)),
        question(b"[]"),
        question(b"x"),
        question(b'{"a":1,"a":2}'),
        question(b'{"a":1,"A":2}'),
        question(b"[" * 99999),
        question(b"\xff"),
    ],
)
async def test_a_question_that_is_not_understood(content: bytes) -> None:
    with refused("admission_form"):
        await ask(content)


async def test_a_question_that_is_understood() -> None:
    asked = await ask(question(b'{"args": []}', command="exec", input="input"))
    assert asked.document == {"args": []}
    assert (asked.command, asked.has_input, asked.pid_file) == ("exec", True, "/b/init.pid")


TEXTS = st.text('aA"{\\', max_size=4)
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=8,
)


@given(VALUES)
async def test_any_document_gives_our_errors_only(value: Any) -> None:
    try:
        assert (await ask(question(json.dumps(value).encode()))).document == value
    except SdsError as error:
        assert error.reason == "admission_form"  # noqa: PT017  most drawn values are no object


class Failing:
    async def decide(self, question: Question) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("content", "decision"),
    [(question(b"[]"), "admission_form"), (question(b"{}"), "internal")],
)
async def test_a_fault_is_the_refusal_of_one_question(
    tmp_path: Path, content: bytes, decision: str
) -> None:
    instruments = AdmissionInstruments(clock=SystemClock())
    server = QuestionServer(Failing(), enforce=True, observer=instruments)  # type: ignore[arg-type]
    path = str(tmp_path / "sock")
    async with await asyncio.start_unix_server(server.answer, path=path):
        for _ in range(2):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(content)
            assert (await reader.readline()).startswith(b"no: ")
            writer.close()
    command = "create" if decision == "internal" else ""
    counted = instruments.registry.get_sample_value(
        "sds_admission_decisions_total", {"command": command, "decision": decision}
    )
    assert counted == 2


class Refusing:
    """An admission whose reason has a name that the host chose, as of a container."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def decide(self, _question: Question) -> None:
        raise WorkloadError(f"no rule lists {self.name}", reason="admission_not_listed")


@pytest.mark.parametrize("name", ["a\x1b[2J\u202eb\x9b\ud800", "a\nyes", "é" * 100_000])
async def test_a_name_that_the_host_chose_is_shown_in_one_line_without_effect(
    tmp_path: Path, name: str
) -> None:
    """The answer comes to logs and events, and the wrapper reads no more than 64 KiB of it."""
    server = QuestionServer(
        Refusing(name),  # type: ignore[arg-type]
        enforce=True,
        observer=AdmissionInstruments(clock=SystemClock()),
    )
    path = str(tmp_path / "sock")
    async with await asyncio.start_unix_server(server.answer, path=path):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(question(b"{}"))
        said = await reader.read()
        writer.close()
    text = said.decode().removesuffix("\n")
    assert text.startswith("no: admission_not_listed: no rule lists ")
    assert text.isprintable()
    assert len(said) < 64 << 10


@pytest.mark.parametrize("decision", [*UNADMITTED, *UNREAD])
def test_the_first_refusal_is_a_rise(decision: str) -> None:
    """A counter that appears with 1 does not rise for Prometheus, so its alert would be silent."""
    registry = AdmissionInstruments(clock=SystemClock()).registry
    for command in ("create", "exec") if decision in UNADMITTED else ("",):
        labels = {"command": command, "decision": decision}
        assert registry.get_sample_value("sds_admission_decisions_total", labels) == 0


def test_every_reason_of_a_refusal_is_known_before_it_occurs() -> None:
    parts = ("sds/admission/", "sds/workload/cri/runtime.py", "sds/workload/cri/canonical.py")
    raised = {
        text.value
        for name, tree in modules().items()
        if name.startswith(parts)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func) in {"WorkloadError", "reading"}
        for word in call.keywords
        if word.arg == "reason"
        for text in ast.walk(word.value)
        if isinstance(text, ast.Constant) and isinstance(text.value, str)
    }
    assert raised - {"cri_late"} - set(UNADMITTED) == set()  # it asks for no container alone


async def test_a_decision_counts_once_though_its_answer_does_not_arrive(tmp_path: Path) -> None:
    instruments = AdmissionInstruments(clock=SystemClock())
    server = QuestionServer(Refusing("x"), enforce=True, observer=instruments)  # type: ignore[arg-type]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def broken() -> None:
            raise ConnectionResetError("the wrapper was killed")

        writer.drain = broken  # type: ignore[method-assign]
        await server.answer(reader, writer)

    path = str(tmp_path / "sock")
    async with await asyncio.start_unix_server(answer, path=path):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(question(b"{}"))
        await reader.read()
        writer.close()
    counted = [
        (sample.labels["decision"], sample.value)
        for family in instruments.registry.collect()
        if family.name == "sds_admission_decisions"
        for sample in family.samples
        if sample.value
    ]
    assert counted == [("admission_not_listed", 1)]


def test_it_is_ready_while_a_policy_is_in_force() -> None:
    """Or SdsNotReady would fire about every service that does its work."""
    clock = SystemClock()
    instruments = AdmissionInstruments(clock=clock)
    alice = Signatory("alice")
    start = PolicySuccession(trust_domain=DOMAIN, trusted=trusting(alice))
    holder = PolicyHolder(start, clock=clock, watcher=instruments)
    instruments.watch_policy(holder)
    assert instruments.registry.get_sample_value("sds_ready") == 0
    now = clock.now().wall
    fields = {
        "not_before": (now - timedelta(hours=1)).isoformat(),
        "not_after": (now + timedelta(hours=1)).isoformat(),
    }
    holder.take(sign(document(1, **fields), alice), origin="file")
    assert instruments.registry.get_sample_value("sds_ready") == 1
    assert instruments.registry.get_sample_value("sds_policy_in_force") == 1


# --- the node's configuration -------------------------------------------------------------------

WRAPPER = "/usr/local/sbin/attested-runc"


def runtimes(**handlers: Any) -> dict[str, Any]:
    good = {"runtime_type": "io.containerd.runc.v2", "options": {"BinaryName": WRAPPER}}
    containerd = {"runtimes": {"runc": good, **handlers}}
    return {"plugins": {"io.containerd.grpc.v1.cri": {"containerd": containerd}}}


def changed(**more: Any) -> dict[str, Any]:
    config = runtimes()
    config["plugins"]["io.containerd.grpc.v1.cri"]["containerd"] |= more
    return config


def test_a_containerd_whose_every_handler_runs_the_wrapper() -> None:
    assert not list(containerd_findings(runtimes(), wrapper=WRAPPER))
    newer = {"plugins": {"io.containerd.cri.v1.runtime": None}}
    newer["plugins"]["io.containerd.cri.v1.runtime"] = runtimes()["plugins"][
        "io.containerd.grpc.v1.cri"
    ]
    assert not list(containerd_findings(newer, wrapper=WRAPPER))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({}, "no section"),
        ({"plugins": {"io.containerd.grpc.v1.cri": {}}}, "the handler 'runc' is built in"),
        ({**runtimes(), "imports": ["/x"]}, "imports"),
        (runtimes(kata={"runtime_type": "io.containerd.kata.v2"}), "'kata' is of the kind"),
        (runtimes(old={"runtime_type": "io.containerd.runc.v1"}), "'old' is of the kind"),
        (runtimes(x={"runtime_type": "io.containerd.runc.v2"}), "'x' executes 'runc', not"),
        (
            runtimes(
                x={
                    "runtime_type": "io.containerd.runc.v2",
                    "runtime_path": "/evil-shim",
                    "options": {"BinaryName": WRAPPER},
                }
            ),
            "'x' is of the kind",
        ),
        (runtimes(x=3), "'x' is of the kind None"),
        (changed(default_runtime_name=["runc"]), "the default handler"),
        (changed(default_runtime_name="other"), "the default handler 'other'"),
        (changed(untrusted_workload_runtime={"runtime_type": "x"}), "untrusted_workload_runtime"),
    ],
)
def test_a_way_around_the_wrapper(config: dict[str, Any], why: str) -> None:
    assert any(why in each for each in containerd_findings(config, wrapper=WRAPPER))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"enableDebuggingHandlers": True}, "enableDebuggingHandlers"),
        ({"enableDebuggingHandlers": None}, "enableDebuggingHandlers"),
        ({"enableDebuggingHandlers": "false"}, "enableDebuggingHandlers"),
        ({"readOnlyPort": 10255}, "readOnlyPort"),
        ({"enableProfilingHandler": True}, "enableProfilingHandler"),
        ({"kind": "Pod"}, "not a KubeletConfiguration"),
    ],
)
def test_a_kubelet_that_reaches_into_containers(change: dict[str, Any], why: str) -> None:
    good = {"kind": "KubeletConfiguration", "enableDebuggingHandlers": False}
    assert not list(kubelet_findings(good))
    assert any(why in each for each in kubelet_findings({**good, **change}))
    assert list(kubelet_findings(None))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    nothing = {"containerd_config": None, "kubelet_config": None}
    for name, content in (("containerd_config", "= ="), ("kubelet_config", "{")):
        path = tmp_path / name
        for _ in range(2):
            with refused("configuration"):
                check_node(NodeInTest(tmp_path, **{**nothing, name: str(path)}).config)
            path.write_text(content)


def test_a_wrapper_of_another_configuration(tmp_path: Path) -> None:
    path = tmp_path / "wrapper"
    settings = {"containerd_config": None, "kubelet_config": None, "wrapper": str(path)}
    config = NodeInTest(tmp_path, **settings).config
    (missing,) = check_node(config)
    assert "cannot be read" in missing
    path.write_text(script(config, python="/any/python3"))
    assert check_node(config) == ()
    lax = NodeInTest(tmp_path, **settings, enforce=False).config
    (stale,) = check_node(lax)
    assert "was made for another configuration" in stale
    with pytest.raises(ValidationError, match="execute itself forever"):
        NodeInTest(tmp_path, wrapper="/usr/sbin/runc")


def test_refusals_are_workload_errors(node: NodeInTest) -> None:
    with pytest.raises(WorkloadError):
        asyncio.run(node.create(SANDBOX, spec(SANDBOX), has_input=True))


@pytest.mark.parametrize("command", ["check", "serve"])
def test_what_is_wrong_with_the_policys_files_is_said_with_the_configuration(
    tmp_path: Path, command: str
) -> None:
    path = tmp_path / "admission.yaml"
    policy = f"{{directory: {tmp_path}/none, keys: [{tmp_path}/alice.pub]}}"
    path.write_text(f"trust_domain: example.org\npolicy: {policy}\n")
    result = CliRunner().invoke(admission, [command, "--config", str(path)])
    assert isinstance(result.exception, ConfigurationError)
    assert str(result.exception).startswith(f"{path}: policy.directory: there is no directory")


KUBELET = "kind: KubeletConfiguration\nenableDebuggingHandlers: false\n"
CONTAINERD = """
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
options = {BinaryName = "WRAPPER"}
"""


@pytest.mark.parametrize("name", ["containerd_config", "kubelet_config"])
def test_the_check_says_what_it_did_not_check_and_that_no_policy_is_in_force(
    tmp_path: Path, name: str
) -> None:
    signatory = Signatory("alice")
    (tmp_path / "alice.pub").write_text(signatory.public.pem)
    ended = {"not_before": "2020-01-01T00:00:00Z", "not_after": "2020-02-01T00:00:00Z"}
    (tmp_path / "policy.json").write_bytes(sign(document(1, **ended), signatory))
    wrapper, path = tmp_path / "runc", tmp_path / "admission.yaml"
    files = {"containerd_config": "containerd.toml", "kubelet_config": "kubelet.yaml"}
    settings: dict[str, Any] = {
        "trust_domain": DOMAIN,
        "policy": {"file": str(tmp_path / "policy.json"), "keys": [str(tmp_path / "alice.pub")]},
        "run_dir": str(tmp_path / "run"),
        "wrapper": str(wrapper),
        **{each: str(tmp_path / file) for each, file in files.items()},
    }
    (tmp_path / "kubelet.yaml").write_text(KUBELET)
    (tmp_path / "containerd.toml").write_text(CONTAINERD.replace("WRAPPER", str(wrapper)))
    settings[name] = None
    path.write_text(json.dumps(settings))
    wrapper.write_text(script(AdmissionConfig.model_validate(settings), python=sys.executable))
    wrapper.chmod(0o755)
    said = CliRunner().invoke(admission, ["check", "--config", str(path)], catch_exceptions=False)
    assert f"warning: {name} is null: nothing checks for ways around" in said.output
    assert ("every handler" in said.output) is (name != "containerd_config")
    assert ("debugging handlers" in said.output) is (name != "kubelet_config")
    assert "until a policy is in force, only pods under always start" in said.output
    (tmp_path / "policy.json").unlink()
    result = CliRunner().invoke(admission, ["check", "--config", str(path)])
    assert str(result.exception).startswith(
        f"{path}: policy: {tmp_path}/policy.json cannot be read"
    )
