"""Programs of the Go module proxy in tests, each built once into the ignored ``.tools/``.

Skipped with a reason where Go is missing or a module cannot be fetched, required in CI. Tests that
run several at once share the one binary: the build holds a lock.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support import need

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class GoProgram:
    """A program, and the versions of the modules that it is built from.

    Attributes:
        name: of the binary.
        package: its main package.
        modules: path and version, the program's own first.
        seconds: that the build may take.
        unlisted: patterns of modules that the checksum database does not answer for (GONOSUMDB).
    """

    name: str
    package: str
    modules: tuple[tuple[str, str], ...]
    seconds: int = 600
    unlisted: str = ""

    def binary(self) -> Path:
        """Path of the program, built where it is not there yet."""
        tools = need.ROOT / ".tools"
        folder = tools / f"{self.name}-{self.modules[0][1]}"
        found = folder / self.name
        if found.is_file():
            return found
        go = need.tool("go")
        folder.mkdir(parents=True, exist_ok=True)
        with (tools / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not found.is_file():
                self._build(go, folder)
        return found

    def _build(self, go: str, folder: Path) -> None:
        requirements = "".join(f"\t{path} {version}\n" for path, version in self.modules)
        (folder / "go.mod").write_text(
            f"module {self.name}.invalid/build\n\ngo 1.19\n\nrequire (\n{requirements})\n"
        )
        built = subprocess.run(
            [go, "build", "-mod=mod", "-buildvcs=false", "-o", self.name, self.package],
            cwd=folder,
            env=os.environ | {"GONOSUMDB": self.unlisted},
            capture_output=True,
            text=True,
            check=False,
            timeout=self.seconds,
        )
        if built.returncode != 0:
            need.missing(f"{self.name} (go build said: {built.stderr.strip()[-500:]})")
