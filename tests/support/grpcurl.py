"""A real grpcurl in tests: built once from the Go module proxy into the ignored ``.tools/``.

Skipped with a reason where Go is missing or the module cannot be fetched, required in CI. Tests
that run several at once share the one binary: the build holds a lock.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from typing import TYPE_CHECKING

from tests.support import need
from tests.support.process import output

if TYPE_CHECKING:
    from pathlib import Path

VERSION = "v1.9.1"
"""The newest that Debian 12's Go (1.19) can build."""
MODULE = "github.com/fullstorydev/grpcurl/cmd/grpcurl"


def binary() -> Path:
    """Path of grpcurl, built where it is not there yet."""
    tools = need.ROOT / ".tools"
    found = tools / f"grpcurl-{VERSION}" / "grpcurl"
    if found.is_file():
        return found
    go = need.tool("go")
    tools.mkdir(exist_ok=True)
    with (tools / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.is_file():
            environment = {**os.environ, "GOBIN": str(found.parent), "GOFLAGS": "-buildvcs=false"}
            built = subprocess.run(
                [go, "install", f"{MODULE}@{VERSION}"],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=600,
            )
            if built.returncode != 0:
                need.missing(f"grpcurl (go install said: {built.stderr.strip()[-500:]})")
    return found


async def grpcurl(*arguments: str | Path, cwd: Path | None = None) -> tuple[int, str, str]:
    """Run grpcurl: exit status, stdout, stderr."""
    return await output([binary(), *arguments], cwd=cwd)
