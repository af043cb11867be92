"""The reference in the checkout is what the code makes, and the complete configurations work."""

from __future__ import annotations

import importlib
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sds.errors import SdsError
from sds.settings.yamlfile import validate
from tests.support import need
from tests.support.node import AUTHORITY, NODE, Node, short_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = need.ROOT / "docs"
FOLDER = DOCS / "reference"
DAEMONS = ("agent", "ca")
INSTEAD_OF = {"policy": ["identities"], "authority": ["verification", "attestation"]}
"""Fields beside which a file has no others: Istio's authority gives and takes no evidence."""
CLUSTER = [
    ("kind: auto", "kind: kubernetes-token"),
    ("  tls: attested", "  tls: {root: /root.pem, server_name: ca.example.org}"),
    ("attestors: [unix]", "attestors: [unix, kubernetes, cri]"),
    ("  kind: self-signed", "  kind: upstream"),
    (
        "\n  path_length: 1",
        "\n  authority: {addresses: ['a:1'], tls: {root: /root.pem, server_name: a.example.org}}",
    ),
]
TOGETHER = {
    "descriptor": [("kind: auto", "kind: simulated")],
    **dict.fromkeys(("projected_token", "url", "ca_file", "token_file", "server_name"), CLUSTER),
    **dict.fromkeys(("cgroup_root", "runtime_cgroup", "pods", "capabilities"), CLUSTER),
    "certificate_cache": [("#certificate_server:", "certificate_server:")],
    "product": [("#certificate_server:", "certificate_server:")],
    "service_dns_names": CLUSTER,
    "certificate": [("#key:", "key:")],
    "key": [("#certificate:", "certificate:")],
    "policy_copy": [
        ("\npolicy_copy: ", "\npolicy: {file: /p.json, keys: [/alice.pub]}\npolicy_copy: ")
    ],
    "csi": [("attestors: [unix]", "attestors: [unix, kubernetes]")],
    "ahead": [("attestors: [unix]", "attestors: [unix, kubernetes]")],
    "fetch": [("#collateral: /", "collateral: /"), ("products: []", "products: [genoa]")],
}
"""What a field needs besides: texts in the file, and what stands in their place then."""


@pytest.fixture(scope="module")
def reference() -> Iterator[Any]:
    sys.path.insert(0, str(DOCS))
    try:
        yield importlib.import_module("_reference")
    finally:
        sys.path.remove(str(DOCS))


@pytest.fixture(scope="module")
def models(reference: Any) -> Any:
    assert reference
    return importlib.import_module("_blocks")


def model(models: Any, which: str) -> type[Any]:
    module, _, name = models.MODELS[which].partition(":")
    found: type[Any] = getattr(importlib.import_module(module), name)
    return found


def test_the_checkout_has_the_reference_that_the_code_makes(reference: Any) -> None:
    made = reference.files()
    stale = [n for n, text in made.items() if (FOLDER / n).read_text() != text]
    assert not stale, f"run `make reference`: {stale} of docs/reference differ from the code"
    assert {path.name for path in FOLDER.iterdir()} == set(made)


SETTING = r"(?<![\w/.-])[a-z_]+(?:\[\])?(?:\.[a-z_]+(?:\[\])?)+(?![\w/])"
NOT_SETTINGS = {"node.metadata"}
"""What messages name in the same form: parts of an Envoy's request."""


def settings(models: Any) -> set[str]:
    """Path of every field of every file, without the marks of lists."""
    found: set[str] = set()

    def walk(block: Any) -> None:
        for entry in block.entries:
            found.add(entry.path.replace("[]", ""))
            for inner in entry.blocks:
                walk(inner)

    for which in models.MODELS:
        walk(models.blocks(which))
    return found


def test_every_setting_that_an_error_names_is_one(reference: Any, models: Any) -> None:
    known = settings(models)
    heads = {path.partition(".")[0] for path in known if "." in path}
    texts = [text for said in reference.messages().values() for pair in said for text in pair]
    texts += [row.cure for row in reference.REASONS.values()]
    named = {found.replace("[]", "") for text in texts for found in re.findall(SETTING, text)}
    wrong = {
        path
        for path in named - NOT_SETTINGS
        if path.partition(".")[0] in heads
        and not any(one == path or one.endswith(f".{path}") for one in known)
    }
    assert wrong == set()
    assert len(named) > 20


@pytest.mark.parametrize("which", DAEMONS)
def test_every_field_is_explained(which: str, models: Any) -> None:
    seen = 0

    def walk(block: Any) -> None:
        nonlocal seen
        for entry in block.entries:
            seen += 1
            assert len(entry.meaning) > 3, entry.path
            assert entry.type, entry.path
            assert not re.search(r"[<>]|class|Union|Annotated|\[\]$", entry.type), entry.type
            for inner in entry.blocks:
                walk(inner)

    walk(models.blocks(which))
    assert seen > 60


@pytest.mark.parametrize("which", DAEMONS)
def test_every_link_to_a_block_leads_to_its_section(which: str) -> None:
    text = (FOLDER / f"{which}.md").read_text()
    made = {
        re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())
        for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    }
    linked = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert len(linked) > 15
    assert linked <= made


@pytest.mark.parametrize("which", DAEMONS)
def test_the_complete_file_fits_a_terminal_and_is_valid(which: str, models: Any) -> None:
    text = (FOLDER / f"{which}.yaml").read_text()
    assert max(map(len, text.splitlines())) <= 80
    validate(yaml.safe_load(text), model(models, which), what=which)


def switched_off(text: str) -> list[tuple[int, int]]:
    """First line and end of each part that is switched off."""
    lines, found = text.splitlines(), []
    for at, line in enumerate(lines):
        if start := re.match(r"( *)#(\w|- )", line):
            end = at + 1
            while end < len(lines) and re.match(rf"{start[1]}#(  |$)", lines[end]):
                end += 1
            found.append((at, end))
    return found


def without(lines: list[str], name: str, indent: str, near: int) -> list[str]:
    """The lines of the block around ``near`` without the field ``name``."""
    for at in range(near, -1, -1):
        if re.match(rf"{indent}(- )?{name}:", lines[at]):
            end = at + 1
            while end < len(lines) and re.match(rf"{indent} +|{indent}#", lines[end]):
                end += 1
            return lines[:at] + [""] * (end - at) + lines[end:]
        if lines[at].strip() and len(indent) > len(lines[at]) - len(lines[at].lstrip()):
            return lines
    return lines


@pytest.mark.parametrize("which", DAEMONS)
def test_what_is_switched_off_in_the_complete_file_is_valid_too(which: str, models: Any) -> None:
    text = (FOLDER / f"{which}.yaml").read_text()
    parts = switched_off(text)
    assert len(parts) > 10
    refused = []
    for start, end in parts:
        lines = text.splitlines()
        indent = re.match(" *", lines[start])
        assert indent
        part = [re.sub(r"^( *)#", r"\1", line) for line in lines[start:end]]
        name = part[0].strip().partition(":")[0]
        lines = without(lines, name, indent[0], start - 1)
        for other in INSTEAD_OF.get(name, []):
            lines = without(lines, other, indent[0], len(lines) - 1)
        changed = "\n".join([*lines[:start], *part, *lines[end:]])
        for before, after in TOGETHER.get(name, []):
            changed = changed.replace(before, after)
        shown = "\n".join(part)
        try:
            validate(yaml.safe_load(changed), model(models, which), what=f"line {start + 1}")
        except SdsError as error:
            refused.append(f"{error}\n{shown}")
    assert not refused, "\n".join(refused)


@pytest.mark.e2e
async def test_both_daemons_start_with_the_complete_files() -> None:
    with short_folder() as folder:
        node = Node(folder)
        authority, agent = (
            yaml.safe_load((FOLDER / f"{n}.yaml").read_text()) for n in ("ca", "agent")
        )
        # What is the machine's own: addresses, evidence, roots, measurements.
        authority |= {
            "listen": f"127.0.0.1:{node.port}",
            "health": {"listen": f"unix:{folder}/ca-health.sock"},
            "metrics": {"listen": f"unix:{folder}/ca-metrics.sock"},
        }
        authority["verification"] |= {"trusted_roots": [str(node.ark)]}
        authority["verification"]["reference_values"]["measurements"] = [NODE.hex()]
        authority["identities"][0]["measurement"] = NODE.hex()
        agent |= {
            "run_dir": str(node.run_dir),
            "health": {"listen": f"unix:{folder}/health.sock"},
            "metrics": {"listen": f"unix:{folder}/metrics.sock"},
            "status_page": {"listen": f"unix:{folder}/page.sock"},
        }
        agent["authority"]["addresses"] = [f"127.0.0.1:{node.port}"]
        agent["verification"] |= {"trusted_roots": [str(node.ark)]}
        agent["verification"]["reference_values"]["measurements"] = [AUTHORITY.hex()]
        del authority["attestation"], agent["attestation"]
        async with node.authority(**authority), node.agent(**agent):
            assert node.socket("web").is_socket()
            assert (node.run_dir / "node" / "sds.sock").is_socket()
