"""What the documentation tells people to write and to type is what the program takes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click
import pytest
import yaml

from sds.agent.config import AgentConfig
from sds.ca.config import AuthorityConfig
from sds.cli import main
from sds.settings.yamlfile import validate
from tests.support import need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DOCS = need.ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("how-to/*.md"), need.ROOT / "README.md"])
AGENT_PAGES = ("federation.md", "istio.md", "operations.md")
BASE: dict[str, Any] = {
    "trust_domain": "cluster.local",
    "run_dir": "/run/sds",
    "authority": {"addresses": ["ca.example:8443"]},
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", AGENT_PAGES)
def test_the_agent_takes_every_section_that_a_page_shows(page: str) -> None:
    found = blocks((DOCS / page).read_text(), "yaml")
    assert found, page
    for block in found:
        validate({**BASE, **yaml.safe_load(block)}, AgentConfig, what=page)


WHOLE = {
    "exchange.md": AuthorityConfig,
    "how-to/install-on-a-host.md": AuthorityConfig,
}
"""Pages that show a whole file of an authority; one with `run_dir` is an agent's."""


@pytest.mark.parametrize("page", WHOLE)
def test_a_whole_file_that_a_page_shows_is_taken(page: str) -> None:
    seen = 0
    for block in blocks((DOCS / page).read_text(), "yaml"):
        text = re.sub(r"\b([0-9a-f]{4})…", lambda digits: digits[1] * 24, block)
        found = yaml.safe_load(text)
        if "trust_domain" not in found:  # a part to add
            continue
        model = AgentConfig if "run_dir" in found else WHOLE[page]
        validate(found, model, what=page)
        seen += 1
    assert seen


def typed(page: Path) -> Iterator[list[str]]:
    """Every command line of ``sds`` in code, as words (continued lines joined)."""
    text = page.read_text().replace("\\\n", " ")
    code = [
        line
        for block in re.findall(r"```.*?```", text, flags=re.DOTALL)
        for line in block.splitlines()[1:]
    ]
    code += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    for line in code:
        for command in re.split(r"[|&;>]|\$\(", line):
            words = command.split("#")[0].replace(")", "").replace('"', "").split()
            if words and words[0] in {"sds", ".venv/bin/sds", "eval"}:
                words = words[words.index("sds") :] if words[0] == "eval" else words
                if len(words) > 1:
                    yield words[1:]


def test_commands_are_found_in_the_text() -> None:
    found = {words[0] for page in PAGES for words in typed(page)}
    assert {"agent", "bootstrap", "dev", "get", "status"} <= found


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that these words call, and what is left of them."""
    command: click.Command = main
    context = click.Context(main)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"there is no command {words[0]!r}"
        command, words = found, words[1:]
    return command, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_exists_with_its_options(page: Path) -> None:
    for words in typed(page):
        if not re.fullmatch(r"--?[a-z][a-z-]*|[a-z][a-z-]*", words[0]):
            continue  # a placeholder, or alternatives such as new|sign
        # What follows "--" is another command: it is looked at as one of its own.
        here, _, inner = (part.split() for part in " ".join(words).partition(" -- "))
        for one in filter(None, (here, inner[1:])):
            check(one, page)


def check(words: list[str], page: Path) -> None:
    command, rest = resolve(words)
    known = {"--help", "-h", "--version"} | {
        option for parameter in command.params for option in parameter.opts
    }
    for word in rest:
        option = word.split("=")[0]
        if re.fullmatch(r"--[a-z][a-z-]+", option):
            assert option in known, f"{page.name}: sds {' '.join(words)}"


def test_paths_that_commands_name_are_there() -> None:
    for page in PAGES:
        for path in re.findall(
            r"(?:apply -k|kustomize(?: build)?) (deploy/[\w./-]+)", page.read_text()
        ):
            assert (need.ROOT / path).exists(), f"{page.name}: {path}"
