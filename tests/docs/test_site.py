"""The documentation builds strictly, loads nothing from elsewhere, and its reference is whole."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from sds.cli import COMMANDS
from sds.reasons import REASONS
from tests.support import need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DOCS = need.ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)],
        cwd=need.ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return target


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module("_reference")


class Loads(HTMLParser):
    """Collects what a page would load from another host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        address = given.get("src") if tag != "link" else given.get("href")
        if tag in {"script", "img", "iframe", "link"} and re.match(r"(https?:)?//", address or ""):
            self.found.append(address or "")


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 8
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text())
        assert not loads.found, page


def links(text: str) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if not target.startswith(("http://", "https://", "#", "mailto:")):
            yield target.partition("#")[0]


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_of_the_top_documents_lead_somewhere(name: str) -> None:
    for target in links((need.ROOT / name).read_text()):
        assert (need.ROOT / target).exists(), f"{name} links to {target}"


def test_the_index_of_errors_has_the_cure_of_every_reason(reference: Any) -> None:
    page = reference.errors()
    assert len(REASONS) > 50
    for reason, row in REASONS.items():
        assert re.fullmatch(r"[a-z0-9_]+", reason), reason
        assert f"## {reason}\n\n**Cure.** {row.cure}" in page


def test_every_command_and_metric_is_in_the_reference(reference: Any) -> None:
    text = reference.command_line()
    for name in COMMANDS:
        assert f"## sds {name}" in text
    metrics = reference.metrics()
    for name in ("sds_push_latency_seconds", "sds_nacks_total", "sds_ca_certificates_total"):
        assert f"#### {name}\n" in metrics
    assert "#### sds_nacks_total\n\ncounter · by `reason`\n" in metrics


def test_every_message_of_an_error_is_found(reference: Any) -> None:
    said = reference.messages()
    assert any("cannot be read" in message for message, _ in said["authority_token"])
    page = reference.errors()
    assert "mount a projected service-account token" in page


def test_search_finds_fields_by_their_names_and_splits_paths(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text())
    titles = {(page["location"].partition("#")[0], page["title"]) for page in index["docs"]}
    assert ("reference/agent.html", "session_tickets") in titles
    assert ("reference/ca.html", "max_lifetime") in titles
    assert ("reference/metrics.html", "sds_nacks_total") in titles
    separator = index["config"]["separator"]
    assert re.split(separator, "workloads[].session_tickets") == ["workloads", "session", "tickets"]
