"""The crate ``sev`` accepts what the simulated machines show."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from sds.attestation.snp.report import SigningKey
from tests.support import need
from tests.support.snp_referees import BUILD_SECONDS, CASES, SUPPORT, built, verdicts

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.timeout(BUILD_SECONDS)
async def test_the_crate_sev_accepts_simulated_reports(tmp_path: Path) -> None:
    made = need.ROOT / ".tools" / "virtee"
    # cargo writes beside its sources.
    shutil.copytree(SUPPORT / "virtee", made / "source", dirs_exist_ok=True)
    program = made / "debug" / "sevreferee"
    arguments = ["build", "--quiet", "--target-dir", str(made)]
    await built("cargo", arguments, made / "source", made, program)
    found = await verdicts(program, tmp_path)
    for case in CASES:
        if case.kind is SigningKey.VLEK and case.version == 2:
            # Such a report names neither processor nor chip, so the crate cannot tell its layout.
            assert "MASK_CHIP_ID is enabled" in found[case.name]
        else:
            assert found[case.name] == "accepted", case.name
