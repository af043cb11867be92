"""The Makefile's own promises."""

import re
from pathlib import Path

import pytest

from tests.support import need
from tests.support.envoy import VERSIONS
from tests.support.process import output

pytestmark = pytest.mark.e2e


async def make(*arguments: str) -> tuple[int, str, str]:
    return await output([need.tool("make"), "--no-print-directory", *arguments], cwd=need.ROOT)


async def test_help_lists_the_targets_that_stay() -> None:
    status, said, _ = await make("help")
    assert status == 0
    assert {"run", "test", "lint", "help", "setup"} <= {
        line.split()[0] for line in said.splitlines()
    }


@pytest.mark.parametrize(
    ("script", "said"),
    [
        # A Python without ensurepip, as Debian's is without python3-venv.
        ('case "$*" in *ensurepip*) exit 1;; esac', "python3-venv"),
        # A Python that is too old says so itself.
        (
            'case "$*" in *version_info*) echo "Python 3.11 or later is needed" >&2; exit 1;; esac',
            "3.11",
        ),
    ],
)
async def test_setup_says_in_one_line_what_is_missing(
    script: str, said: str, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\nexit 0\n")
    python.chmod(0o755)
    venv = tmp_path / "venv"
    status, out, errors = await make("setup", f"PYTHON={python}", f"VENV={venv}")
    assert status != 0
    lines = [line for line in (out + errors).splitlines() if not line.startswith("make")]
    assert len(lines) == 1
    assert said in lines[0]
    assert not venv.exists()


def test_the_makefile_and_the_pins_name_the_same_envoys() -> None:
    makefile = (need.ROOT / "Makefile").read_text()
    listed = re.search(r"^ENVOY_VERSIONS := (.+)$", makefile, re.MULTILINE)
    newest = re.search(r"^ENVOY_VERSION := (.+)$", makefile, re.MULTILINE)
    assert listed is not None
    assert newest is not None
    assert tuple(listed[1].split()) == VERSIONS
    assert newest[1] == VERSIONS[0]
    assert len({version.rpartition(".")[0] for version in VERSIONS}) == len(VERSIONS)


def test_no_pin_holds_an_address() -> None:
    for name in ("constraints.txt", "constraints-runtime.txt", "envoy-constraints.txt"):
        text = (need.ROOT / name).read_text()
        assert "://" not in text
        assert text.count("--hash=sha256:") > text.count("==")


def test_where_uv_fails_pip_tries() -> None:
    """Behind a company's proxy, pip reads certificates that uv does not."""
    makefile = (need.ROOT / "Makefile").read_text()
    assert re.findall(r"uv pip install.*", makefile) == re.findall(
        r"uv pip install.*\|\| \{ echo \"uv failed; pip tries \.\.\.\"; \\", makefile
    )
    assert "-m pip --python $(or $(3),$(VENV))/bin/python install" in makefile
