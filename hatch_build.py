"""Build hook: generates the protobuf modules of ``proto/`` into ``sds/_proto/``.

Runs for the wheel, the sdist and editable installs, so that generated code is
never committed and never stale. ``python hatch_build.py`` does the same by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent


def generate(root: Path = ROOT) -> list[Path]:
    """Generate every module of ``root/proto`` and return the files written.

    ``-Isds/_proto=proto`` makes imports read ``sds._proto.…``: without the
    mapping ``proto/sds/ca/v1`` would collide with our own package ``sds.ca``.
    """
    from grpc_tools import protoc  # noqa: PLC0415  a build requirement, absent at run time

    sources = sorted((root / "proto").rglob("*.proto"))
    if not sources:
        message = f"no .proto file under {root / 'proto'}"
        raise FileNotFoundError(message)
    well_known = Path(protoc.__file__).parent / "_proto"
    names = [f"sds/_proto/{path.relative_to(root / 'proto').as_posix()}" for path in sources]
    status = protoc.main(
        [
            "protoc",
            f"-Isds/_proto={root / 'proto'}",
            f"-I{well_known}",
            f"--python_out={root}",
            f"--pyi_out={root}",
            *names,
        ]
    )
    if status != 0:
        message = f"protoc failed with status {status}"
        raise RuntimeError(message)
    packages = {(root / name).parent for name in names}
    top = root / "sds" / "_proto"
    for package in packages:
        for folder in (package, *package.parents):
            (folder / "__init__.py").touch()
            if folder == top:
                break
    return [(root / name).with_name(Path(name).stem + "_pb2.py") for name in names]


class ProtobufBuildHook(BuildHookInterface[Any]):
    """Calls :func:`generate` before hatchling collects files."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See hatchling's build hook interface; ``version`` is the target's version."""
        del version, build_data
        generate(Path(self.root))


if __name__ == "__main__":
    for written in generate():
        sys.stdout.write(f"{written.relative_to(ROOT)}\n")
