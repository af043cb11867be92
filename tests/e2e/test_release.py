"""What `make dist` makes installs into an empty environment and works far from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import sds
from tests.support import need

pytestmark = pytest.mark.e2e
BIN = Path(sys.executable).parent


def run(*command: str | Path, cwd: Path, timeout: float = 170) -> str:
    """Run it as a user elsewhere would: no PYTHONPATH, no virtual environment, no checkout."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
    ran = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert ran.returncode == 0, f"{command}: {ran.stdout}\n{ran.stderr}"
    return ran.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, source = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("source") / "copy"
    # A copy: building writes the generated code anew, which other tests read at this moment.
    unwanted = (".*", "__pycache__", "dist", "site", "_proto", "htmlcov")
    shutil.copytree(need.ROOT, source, ignore=shutil.ignore_patterns(*unwanted))
    run(BIN / "hatchling", "build", "--directory", folder, cwd=source)
    return folder


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that holds the wheel and what it pins."""
    home = tmp_path_factory.mktemp("elsewhere")
    uv, python = BIN / "uv", home / "environment" / "bin" / "python"
    run(uv, "venv", "--quiet", "--python", sys.executable, home / "environment", cwd=home)
    pins = need.ROOT / "constraints-runtime.txt"
    (wheel,) = dist.glob("*.whl")
    install = (uv, "pip", "install", "--quiet", "--python", python)
    run(*install, "--require-hashes", "-r", pins, cwd=home)
    run(*install, "--no-deps", wheel, cwd=home)
    return python.parent


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/RECORD")}


def test_the_wheel_holds_the_package_and_generated_code_only(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    assert f"-{sds.__version__}-" in wheel.name
    found = names(wheel)
    assert "sds/_proto/sds/ca/v1/ca_pb2.py" in found
    assert "sds/py.typed" in found
    assert {name.split("/")[0] for name in found} == {
        "sds",
        f"attested_sds-{sds.__version__}.dist-info",
    }


def test_the_sdist_builds_the_same_wheel(dist: Path, tmp_path: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    run(BIN / "hatchling", "build", "--target", "wheel", "--directory", tmp_path, cwd=folder)
    (again,), (wheel,) = tmp_path.glob("*.whl"), dist.glob("*.whl")
    assert names(again) == names(wheel)


def test_commands_run_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    assert sds.__version__ in run(installed / "sds", "--version", cwd=tmp_path)
    assert "bootstrap" in run(installed / "sds", "--help", cwd=tmp_path)
    where = run(installed / "python", "-c", "import sds; print(sds.__file__)", cwd=tmp_path)
    assert str(need.ROOT) not in where


def test_the_demo_runs_outside_the_checkout_and_speaks_in_lines_on_a_pipe(
    installed: Path, tmp_path: Path
) -> None:
    envoy = need.envoy("1.40.0")
    text = run(installed / "sds", "demo", "--lifetime", "4", "--envoy", envoy, cwd=tmp_path)
    assert "peer saw new serial" in text
    assert "0 failed" in text.splitlines()[-1]
