"""Builds the peers: ``python -m bench.peers.programs``, or at their first measurement.

It needs Go, the module proxy, and minutes: SPIRE takes about twelve on two busy cores, Istio's
server about three. A build runs with low priority, and once: its result stays in ``.tools/``.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".tools"
_GO = "1.25.0"
_NICE = 10


@dataclass(frozen=True)
class GoPrograms:
    """Programs of one module; ``sources`` are our own files that are built with it."""

    name: str
    module: str
    version: str
    packages: dict[str, str]
    sources: tuple[Path, ...] = ()

    def built(self) -> Path:
        """The folder with the programs, which are built where they are not there yet."""
        folder = TOOLS / f"{self.name}-{self.version}"
        if all((folder / program).is_file() for program in self.packages):
            return folder
        go = shutil.which("go")
        if go is None:
            raise SystemExit(f"{self.name} is built from source: install Go {_GO} or later")
        folder.mkdir(parents=True, exist_ok=True)
        with (TOOLS / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._build(go, folder)
        return folder

    def _build(self, go: str, folder: Path) -> None:
        (folder / "go.mod").write_text(
            f"module {self.name}.invalid/build\n\ngo {_GO}\n\n"
            f"require {self.module} {self.version}\n"
        )
        for source in self.sources:
            shutil.copy(source, folder)
        for program, package in self.packages.items():
            print(f"building {program} of {self.module} {self.version} ...", file=sys.stderr)
            command = [go, "build", "-mod=mod", "-buildvcs=false", "-o", program, package]
            built = subprocess.run(
                command, cwd=folder, preexec_fn=lambda: os.nice(_NICE), check=False
            )
            if built.returncode:
                raise SystemExit(f"{program} could not be built")


SPIRE = GoPrograms(
    name="spire",
    module="github.com/spiffe/spire",
    version="v1.13.3",
    packages={
        "spire-agent": "github.com/spiffe/spire/cmd/spire-agent",
        "spire-server": "github.com/spiffe/spire/cmd/spire-server",
    },
)
ISTIO = GoPrograms(
    name="istio-sds",
    module="istio.io/istio",
    version="v0.0.0-20260306174214-6991a379e1fc",  # 1.29.1
    packages={"istio-sds": "."},
    sources=(Path(__file__).with_name("istio") / "main.go",),
)

if __name__ == "__main__":
    for each in (ISTIO, SPIRE):
        print(each.built())
