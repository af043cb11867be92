"""Hooks of the documentation's build: the navigation, over the pages that are there.

Invariant: every page of ``docs/`` is in the navigation, the known ones in their order.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

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
        "how-to/confidential-clouds.md",
        "how-to/migrate-from-spire.md",
        "how-to/migrate-from-istio.md",
        "how-to/read-an-error.md",
    ),
    "Reference": (
        "reference/configuration.md",
        "reference/agent.md",
        "reference/ca.md",
        "reference/cli.md",
        "reference/metrics.md",
        "reference/errors.md",
        "protocol.md",
        "exchange.md",
        "attestation.md",
        "measurements.md",
        "performance.md",
        "reliability.md",
    ),
    "Explanation": (
        "design.md",
        "extending.md",
        "threat-model.md",
        "why-not-etcd.md",
        "adr/index.md",
    ),
}
"""The order of pages; those that are not there are left out, others come last."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the navigation of what is there."""
    folder = Path(config.docs_dir)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.md")}
    decisions = {name for name in found if name.startswith("adr/0")}
    found -= decisions
    named = {name for pages in SECTIONS.values() for name in pages}
    nav: list[Any] = [
        {title: [name for name in pages if name in found]} for title, pages in SECTIONS.items()
    ]
    if rest := sorted(found - named):
        nav.append({"More": rest})
    config.nav = [section for section in nav if next(iter(section.values()))]
    return config
