"""Writes the list of licences of everything that a release brings along, from its SBOM.

    python tools/licences.py SBOM.json > LICENCES.md

Invariant: every component of the SBOM stands in the list; one without a known licence fails.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def licence(component: dict[str, Any]) -> str:
    """SPDX expression, identifier or name, in this order of preference."""
    found: list[str] = []
    for entry in component.get("licenses", []):
        if "expression" in entry:
            return str(entry["expression"])
        known = entry.get("license", {})
        name = str(known.get("id") or known.get("name") or "")
        if name.startswith("declared license"):  # the field holds a name, or a whole text
            text = known.get("text", {})
            name = "" if "encoding" in text else str(text.get("content", "")).strip()
        if name and "\n" not in name and not name.startswith("file "):
            found.append(name)
    named = [name for name in found if "::" not in name]
    return ", ".join(dict.fromkeys(named or found))


def table(sbom: dict[str, Any]) -> str:
    """The list as Markdown.

    Raises:
        SystemExit: a component has no licence that anybody knows.
    """
    rows, unknown = [], []
    for component in sorted(sbom["components"], key=lambda c: str(c["name"]).lower()):
        name = licence(component)
        if not name:
            unknown.append(component["name"])
        rows.append(f"| {component['name']} | {component.get('version', '')} | {name} |")
    if unknown:
        raise SystemExit(f"no licence is known of: {', '.join(unknown)}")
    head = ["# Licences", "", "| component | version | licence |", "| --- | --- | --- |"]
    return "\n".join([*head, *rows, ""])


if __name__ == "__main__":
    sys.stdout.write(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
