"""Every option of every command, with what a person could write by mistake.

Whatever it is, the command ends with a status and words, and never with a traceback.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from typing import TYPE_CHECKING, Final, NoReturn

import click
import pytest
import yaml
from click.testing import CliRunner

from sds.attestation.collateral.fetching import Fetcher
from sds.cli import main
from sds.commands import bootstrap, demo, simulate
from sds.errors import SdsError
from sds.identity import KeyType
from sds.pki import generate_private_key, private_key_pem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VALUES: Final = [
    *("", " ", "x", "-1", "0", "1.5", "9" * 30, "nan", "\n", "\x1b[2J", "☃", "a" * 5000, "="),
    *("{}", "/", ".", "missing/file", "/dev/null", "text", "binary", "spiffe://", "https://"),
    *("unix:", "~/x", "'", "[::1", "a..b:1"),
]
PARTS: Final = int(os.environ.get("SDS_PARTS_OF_VALUES", "10"))
"""1 tries every value everywhere, which takes minutes."""
JARGON: Final = re.compile(r"Traceback|pydantic|errno|Errno|<class|object at 0x|Error\(")
NEEDED: Final = {
    "admission check": ["--config", "text"],
    "admission serve": ["--config", "text"],
    "admission wrapper": ["--config", "text"],
    "agent": ["--config", "text", "--check-config"],
    "bootstrap": ["--socket", "/s", "--peer", "127.0.0.1:1"],
    "ca": ["--config", "text", "--check-config"],
    "collateral fetch": ["--out", "out", "--fmspc", "00" * 6, "--product", "genoa"],
    "collateral recoveries": [],
    "completion": ["bash"],
    "csr new": [
        *("--key", "key", "--spiffe-id", "spiffe://a/b", "--report", "binary", "--out", "out"),
    ],
    "csr report-data": ["--key", "key", "--nonce", "00" * 32],
    "csr verify": ["binary", "--nonce", "00" * 32],
    "demo": ["--rotations", "1"],
    "dev": [],
    "evidence collect": ["--out", "out"],
    "evidence measure": ["--firmware", "binary", "--vcpus", "1", "--vcpu-type", "EPYC-v4"],
    "evidence show": ["binary"],
    "evidence verify": ["binary"],
    "get": ["--socket", "missing.sock"],
    "policy diff": ["policy", "policy"],
    "policy explain": ["policy", "--from", "spiffe://a/b", "--to", "spiffe://a/c"],
    "policy import istio": ["policy"],
    "policy keygen": ["--out", "keys", "--name", "alice"],
    "policy lint": ["policy"],
    "policy new": ["--trust-domain", "a"],
    "policy pod": ["pod", "--uid", "u"],
    "policy schema": [],
    "policy sign": ["policy", "--key", "key", "--out", "out"],
    "policy test": ["policy", "cases"],
    "policy verify": ["policy", "--key", "key"],
    "simulate": ["--", "sds", "agent", "--config", "text"],
    "status": ["--socket", "missing.sock"],
    "whoami": ["--socket", "missing.sock"],
}
"""What each command needs beside the option that is wrong."""


def leaves(command: click.Command, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command that does something."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    with click.Context(command) as context:
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from leaves(child, f"{path} {name}".strip())


COMMANDS: Final = dict(leaves(main))


class StartedError(SdsError):
    """The command would do its work now."""

    reason = "internal"


def start(*_: object, **__: object) -> NoReturn:
    raise StartedError("it would start now")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("a: 1\n")
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_bytes(private_key_pem(generate_private_key(KeyType.EC_P256)))
    pod = {"kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": []}}
    (tmp_path / "pod").write_text(yaml.safe_dump(pod))
    (tmp_path / "cases").write_text("cases: []\n")
    made = CliRunner().invoke(main, ["policy", "new", "--trust-domain", "a", "--out", "policy"])
    assert made.exit_code == 0, made.output
    monkeypatch.setattr(bootstrap, "make_bootstrap", start)  # 0.3 s each time
    monkeypatch.setattr(demo, "simulated_node", start)
    monkeypatch.setattr(demo, "find_envoy", start)
    monkeypatch.setattr(simulate, "manufacturer", start)
    monkeypatch.setattr(Fetcher, "fetch", start)
    monkeypatch.setattr(Fetcher, "recoveries", start)
    return tmp_path


def test_every_command_is_tried() -> None:
    assert set(NEEDED) == set(COMMANDS)


def told(path: str, *arguments: str) -> None:
    """The command ends in order, and says why if it fails."""
    result = CliRunner().invoke(main, [*path.split(), *arguments], input="")
    assert result.exception is None or isinstance(result.exception, SystemExit), (
        arguments,
        result.exc_info,
    )
    assert result.exit_code in {0, 1, 2}, arguments
    assert not JARGON.search(result.output), (arguments, result.output)
    if result.exit_code == 2:
        assert result.stderr.strip(), arguments


def some(number: int) -> list[str]:
    """A part of the values, another one for each option and argument of a command."""
    return VALUES[number % PARTS :: PARTS]


@pytest.mark.parametrize("path", sorted(NEEDED))
def test_a_wrong_value_of_an_option_is_said_in_words(path: str) -> None:
    for number, parameter in enumerate(COMMANDS[path].params):
        if isinstance(parameter, click.Option) and not parameter.is_flag:
            for value in some(number):
                told(path, f"{parameter.opts[0]}={value}", *NEEDED[path])


@pytest.mark.parametrize("path", sorted(NEEDED))
def test_a_wrong_argument_is_said_in_words(path: str) -> None:
    """In place of each word that the command needs, and one too many."""
    for place in range(len(NEEDED[path]) + 1):
        for value in some(place):
            words = list(NEEDED[path])
            words[place : place + 1] = [value]
            told(path, *words)


NONSENSE: Final = [5, "x", [5], ["x"], [[]], {"x": 5}, [{"name": 5}], [{"name": "a", "env": 5}]]


@pytest.mark.parametrize("field", ["containers", "initContainers", "volumes", "securityContext"])
def test_a_manifest_that_is_not_a_pods_is_said_in_words(folder: Path, field: str) -> None:
    config = json.dumps({"config": {}}).encode()
    saved = [{"Config": "c", "Layers": []}]
    with tarfile.open(folder / "image", "w") as archive:
        for name, content in (("c", config), ("manifest.json", json.dumps(saved).encode())):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    images = ["--image", "registry.k8s.io/pause:3.8=image", "--image", "i=image"]
    container = {"name": "c", "image": "i", "command": ["x"]}
    for value in NONSENSE:
        spec = {"containers": [container], "enableServiceLinks": False, field: value}
        for each in (
            spec,
            {"containers": [container | dict.fromkeys(("env", "volumeMounts"), value)]},
            {"containers": [container | {"securityContext": value, "lifecycle": value}]},
            {"containers": [container | {"securityContext": {"capabilities": value}}]},
        ):
            pod = {"kind": "Pod", "metadata": {"name": "p"}, "spec": {**spec, **each}}
            (folder / "pod").write_text(yaml.safe_dump(pod))
            told("policy pod", "pod", *images)


@pytest.mark.parametrize(
    ("path", "idle"),
    [
        ("collateral fetch", ["--out", "o", "--product", "genoa", "--pcs", "https://a.example"]),
        ("collateral fetch", ["--out", "o", "--product", "genoa", "--update", "early"]),
        ("collateral fetch", ["--out", "o", "--product", "genoa", "--ca", "platform"]),
        ("collateral fetch", ["--out", "o", "--fmspc", "00" * 6, "--kds", "https://a.example"]),
        (
            "collateral fetch",
            [
                *("--out", "o", "--fmspc", "00" * 6, "--update", "early"),
                *("--tcb-evaluation-data-number", "17"),
            ],
        ),
        ("csr new", [*NEEDED["csr new"], "--nonce", "00" * 32]),
        (
            "csr new",
            [
                *("--key", "key", "--spiffe-id", "spiffe://a/b", "--attestation", "text"),
                *("--nonce", "00" * 32, "--out", "out", "--chain", "binary"),
            ],
        ),
        ("evidence collect", ["--out", "out", "--attestation", "text", "--kind", "tdx"]),
        ("evidence verify", ["binary", "--chain", "binary"]),
        ("policy explain", [*NEEDED["policy explain"], "--identity", "spiffe://a/b"]),
        ("policy explain", [*NEEDED["policy explain"], "--dns-name", "a"]),
        ("policy explain", [*NEEDED["policy explain"], "--service", "a/b"]),
        ("policy explain", [*NEEDED["policy explain"], "--claim", "a=b"]),
        ("policy explain", ["policy", "--caller", "k8s:ns=a", "--kind", "tdx"]),
        ("policy pod", ["pod", "--uid", "u", "--node", "text"]),
        ("policy pod", ["pod", "--image", "a=b", "--socket", "/s"]),
        ("policy sign", [*NEEDED["policy sign"], "--public-key", "key"]),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(path: str, idle: list[str]) -> None:
    result = CliRunner().invoke(main, [*path.split(), *idle])
    assert result.exit_code == 2, result.output
    assert re.search(r"Error: .*--[a-z-]+ (is|needs|belongs|completes|and) ", result.stderr), (
        result.stderr
    )
