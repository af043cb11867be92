"""The folder of a TPM's issuers: every file counts at the start, and none takes others with it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from sds import faults
from sds.attestation.build import make_attester
from sds.attestation.settings import AttestationSection
from sds.attestation.tpm.issuers import MOST_FILES, IssuerFolder
from sds.errors import ConfigurationError
from sds.pki import certificate_pem
from tests.support.certificates import ca_wish, self_signed

if TYPE_CHECKING:
    from pathlib import Path

ONE, OTHER = (self_signed(ca_wish(name)).der for name in ("one", "other"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a note of the operator",
        certificate_pem([ONE])[:-40],
        ONE[:-1],
        b"\x30\x82" + bytes(100),
        None,
    ],
)
def test_a_file_that_is_no_certificate_ends_the_start(
    content: bytes | None, tmp_path: Path
) -> None:
    (tmp_path / "good.pem").write_bytes(certificate_pem([ONE]))
    if content is None:
        (tmp_path / "junk").symlink_to("nowhere")
    else:
        (tmp_path / "junk").write_bytes(content)
    section = AttestationSection(kind="tpm", certificates=tmp_path)
    with pytest.raises(ConfigurationError, match=f"certificates: {tmp_path}/junk cannot be used: "):
        make_attester(section)


def test_a_folder_that_cannot_be_used_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"{tmp_path}/none cannot be used: No such file"):
        IssuerFolder(tmp_path / "none").require()
    for number in range(MOST_FILES + 1):
        (tmp_path / f"{number}").write_bytes(ONE)
    with pytest.raises(ConfigurationError, match="it has 17 files"):
        IssuerFolder(tmp_path).require()


def test_while_it_runs_a_bad_file_takes_nothing_from_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = tmp_path / "a.pem", tmp_path / "b.der"
    first.write_bytes(certificate_pem([ONE]))
    second.write_bytes(OTHER)
    (tmp_path / "..data").mkdir()
    folder = IssuerFolder(tmp_path)
    folder.require()
    before = faults.counts()["certificate file"]
    (tmp_path / "c").write_bytes(b"junk")
    first.write_bytes(certificate_pem([OTHER])[:100])  # half of it is written
    for _ in range(3):
        assert folder.certificates() == [ONE, OTHER]
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert faults.counts()["certificate file"] == before + 6
    caplog.set_level(logging.INFO)
    first.write_bytes(certificate_pem([OTHER]))
    (tmp_path / "c").unlink()
    assert folder.certificates() == [OTHER, OTHER]
    assert caplog.messages[2:] == [f"attestation.certificates: {first} can be used again"]
    first.unlink()
    assert folder.certificates() == [OTHER], "what is taken away is not sent any more"
    tmp_path.rename(tmp_path.with_name("gone"))
    assert folder.certificates() == [OTHER]
    assert len(caplog.records) == 4
