"""Simulated machines shown to verifiers of others: cases, a build of each, and their verdicts."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sds.attestation.snp.report import Product, SigningKey
from tests.support import need
from tests.support.machines import NOW, simulated
from tests.support.process import output

if TYPE_CHECKING:
    from pathlib import Path

    from sds.attestation.snp.simulated import SimulatedMachine

DATA = bytes(range(64))
BUILD_SECONDS = 900.0
SUPPORT = need.ROOT / "tests" / "support"
VERSIONS = (2, 3, 4, 5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A simulated machine and the version of its report."""

    product: Product
    kind: SigningKey
    version: int

    @property
    def name(self) -> str:
        return f"{self.product} {self.kind.name} {self.version}"

    def line(self) -> str:
        machine: SimulatedMachine = simulated(self.product, self.kind).machine()
        leaf, issuer, root = machine.certificates
        fields = {
            "report": machine.changed(version=self.version).report(DATA),
            "leaf": leaf,
            "issuer": issuer,
            "root": root,
        }
        encoded = {name: base64.b64encode(raw).decode() for name, raw in fields.items()}
        return json.dumps(
            encoded
            | {
                "product": self.product.certificate_name,
                "vlek": self.kind is SigningKey.VLEK,
                "at": NOW.isoformat(),
            }
        )


CASES = [
    Case(product=product, kind=kind, version=version)
    for product in Product
    for kind in (SigningKey.VCEK, SigningKey.VLEK)
    for version in VERSIONS
]


async def built(tool: str, arguments: list[str], source: Path, made: Path, program: Path) -> Path:
    """A program of a referee, built outside the sources where it is not there yet."""
    found = need.tool(tool)
    newest = max(path.stat().st_mtime for path in source.rglob("*") if path.is_file())
    if not program.exists() or program.stat().st_mtime < newest:
        made.mkdir(parents=True, exist_ok=True)
        status, _, errors = await output([found, *arguments], cwd=source, seconds=BUILD_SECONDS)
        if status != 0:
            need.missing(f"a build of {source} ({errors[-300:]})")
    return program


async def verdicts(program: Path, tmp_path: Path) -> dict[str, str]:
    lines = tmp_path / "lines"
    lines.write_text("".join(f"{case.line()}\n" for case in CASES))
    status, said, errors = await output(["/bin/sh", "-c", f"exec {program} < {lines}"])
    assert status == 0, errors
    found = said.splitlines()
    assert len(found) == len(CASES)
    return {case.name: verdict for case, verdict in zip(CASES, found, strict=True)}
