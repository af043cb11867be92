"""Hooks of the documentation's build: generated pages, and navigation over what is there.

Invariant: a page of the reference exists only as code; every page of ``docs/`` is in the
navigation, the known ones in their order.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).resolve().parent))
import _reference

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

GENERATED: Final = {
    "reference/cli.md": _reference.command_line,
    "reference/configuration.md": _reference.configuration,
    "reference/metrics.md": _reference.metrics,
    "reference/errors.md": _reference.errors,
}
SECTIONS: Final[dict[str, tuple[str, ...]]] = {
    "Start": ("index.md", "tutorial.md", "glossary.md"),
    "How to": (
        "how-to/install-on-a-host.md",
        "kubernetes.md",
        "how-to/your-own-envoy.md",
        "workload-api.md",
        "policy.md",
        "operations.md",
        "federation.md",
        "istio.md",
        "how-to/migrate-from-spire.md",
        "how-to/migrate-from-istio.md",
        "how-to/read-an-error.md",
    ),
    "Reference": (
        *GENERATED,
        "protocol.md",
        "exchange.md",
        "attestation.md",
        "measurements.md",
        "performance.md",
        "reliability.md",
    ),
    "Explanation": ("design.md", "threat-model.md", "why-not-etcd.md", "adr/index.md"),
}
"""The order of pages; those that are not there are left out, others come last."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the navigation of what is there."""
    folder = Path(config.docs_dir)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.md")}
    decisions = {name for name in found if name.startswith("adr/0")}
    found = found - decisions | set(GENERATED)
    named = {name for pages in SECTIONS.values() for name in pages}
    nav: list[Any] = [
        {title: [name for name in pages if name in found]} for title, pages in SECTIONS.items()
    ]
    if rest := sorted(found - named):
        nav.append({"More": rest})
    config.nav = [section for section in nav if next(iter(section.values()))]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for name, make in GENERATED.items():
        files.append(File.generated(config, name, content=make()))
    return files
