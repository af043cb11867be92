"""A real grpcurl in tests; see :mod:`tests.support.go_program`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.go_program import GoProgram
from tests.support.process import output

if TYPE_CHECKING:
    from pathlib import Path

GRPCURL = GoProgram(
    name="grpcurl",
    package="github.com/fullstorydev/grpcurl/cmd/grpcurl",
    # The newest that Debian 12's Go (1.19) can build.
    modules=(("github.com/fullstorydev/grpcurl", "v1.9.1"),),
)


def binary() -> Path:
    """Path of grpcurl, built where it is not there yet."""
    return GRPCURL.binary()


async def grpcurl(*arguments: str | Path, cwd: Path | None = None) -> tuple[int, str, str]:
    """Run grpcurl: exit status, stdout, stderr."""
    return await output([binary(), *arguments], cwd=cwd)
