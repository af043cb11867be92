"""``sds evidence measure``: launch measurements of a made firmware, page by page."""

from __future__ import annotations

import hashlib
import json
import random
import struct
import uuid
from typing import TYPE_CHECKING

import pytest
import yaml
from click.testing import CliRunner
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vmm_types import VMMType
from sevsnpmeasure.vmsa import VMSA

from sds.attestation.reference_values import ReferenceValues
from sds.attestation.snp import launch
from sds.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

SIZE = 16 * 4096
RESET = 0xFFFF_F000
HASHES_AT = 0x80_1C00
SECTIONS = (
    (0x80_0000, 0x1000, 1),  # zero pages
    (0x80_2000, 0x1000, 2),  # secrets
    (0x80_3000, 0x1000, 3),  # CPUID
    (0x80_1000, 0x1000, 0x10),  # kernel hashes
)
FOOTER = "96b582de-1fb2-45f7-baea-a366c55a082d"
TABLE = {
    "7255371f-3a3b-4b04-927b-1da6efa8d454": struct.pack("<II", HASHES_AT, 0x400),
    "00f771de-1a7e-4fcb-890e-68c77e2fb44e": struct.pack("<I", RESET),
    "dc886566-984a-4798-a75e-5585a7bf67cc": struct.pack("<I", 0x2000),
}
"""Of OVMF's reset vector: where its hashes, first instruction and SEV metadata are."""
HASHES = "9438d606-4f22-4cc9-b479-a793d411fd21"
COMMAND_LINE = "97d02dd8-bd20-4c94-aa78-e7714d36ab2a"
INITRD = "44baf731-3a2f-4bd7-9af1-41e29169781d"
KERNEL = "4de79437-abd2-427f-b835-d5b172d2045b"
MILAN = 0x00A0_0F11
"""CPUID Fn0000_0001_EAX: family 25, model 1, stepping 1."""


def guid(text: str) -> bytes:
    return uuid.UUID(text).bytes_le


def firmware(*, sections: tuple[tuple[int, int, int], ...] = SECTIONS) -> bytes:
    """As OVMF ends: metadata, then the table of GUIDs, then 32 bytes of the reset vector."""
    content = bytearray(random.Random(7).randbytes(SIZE))
    listed = b"".join(struct.pack("<III", *one) for one in sections)
    metadata = b"ASEV" + struct.pack("<III", 16 + len(listed), 1, len(sections)) + listed
    content[-0x2000 : -0x2000 + len(metadata)] = metadata
    table = b"".join(
        data + struct.pack("<H", len(data) + 18) + guid(name) for name, data in TABLE.items()
    )
    table += struct.pack("<H", len(table) + 18) + guid(FOOTER)
    content[-32 - len(table) : -32] = table
    return bytes(content)


def extended(digest: bytes, kind: int, address: int, contents: bytes) -> bytes:
    """PAGE_INFO (AMD 56860, table 67)."""
    info = digest + contents + struct.pack("<HBBBBBBQ", 0x70, kind, 0, 0, 0, 0, 0, address)
    return hashlib.sha384(info).digest()


def hashes_page(kernel: bytes, initrd: bytes, command_line: str) -> bytes:
    """QEMU's table of hashes (target/i386/sev.c), in its page."""
    entries = b"".join(
        guid(name) + struct.pack("<H", 50) + hashlib.sha256(content).digest()
        for name, content in (
            (COMMAND_LINE, command_line.encode() + b"\0"),
            (INITRD, initrd),
            (KERNEL, kernel),
        )
    )
    table = guid(HASHES) + struct.pack("<H", 18 + len(entries)) + entries
    return (bytes(HASHES_AT & 0xFFF) + table).ljust(4096, b"\0")


def measured(vcpus: int, *, page: bytes | None) -> str:
    """What the processor computes."""
    image, digest = firmware(), bytes(48)
    for offset in range(0, SIZE, 4096):
        contents = hashlib.sha384(image[offset : offset + 4096]).digest()
        digest = extended(digest, 1, (1 << 32) - SIZE + offset, contents)
    for address, _, section in SECTIONS:
        if section == 0x10 and page is not None:
            digest = extended(digest, 1, address, hashlib.sha384(page).digest())
            continue
        kind = {1: 3, 2: 5, 3: 6, 0x10: 3}[section]
        digest = extended(digest, kind, address, bytes(48))
    # The initial state of a vCPU is QEMU's; the library has it.
    for state in VMSA(SevMode.SEV_SNP, RESET, MILAN, 1, VMMType.QEMU).pages(vcpus):
        contents = hashlib.sha384(bytes(state)).digest()
        digest = extended(digest, 2, 0xFFFF_FFFF_F000, contents)
    return digest.hex()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "OVMF.fd").write_bytes(firmware())
    (tmp_path / "kernel").write_bytes(b"kernel")
    (tmp_path / "initrd").write_bytes(b"initrd")
    return tmp_path


def run(image: Path, *more: str, vcpu_type: str = "EPYC-Milan") -> Result:
    given = ["--firmware", str(image / "OVMF.fd"), "--vcpu-type", vcpu_type]
    return CliRunner().invoke(main, ["evidence", "measure", *given, *more])


def booted(image: Path, *more: str) -> list[str]:
    return ["--kernel", str(image / "kernel"), "--initrd", str(image / "initrd"), *more]


def test_a_direct_boot_is_measured_as_the_processor_does(image: Path) -> None:
    page = hashes_page(b"kernel", b"initrd", "console=ttyS0")
    wanted = [measured(count, page=page) for count in (1, 4)]
    more = booted(image, "--append", "console=ttyS0", "--vcpus", "1", "--vcpus", "4")
    done = run(image, *more)
    assert (done.exit_code, done.stderr) == (0, "")
    values = yaml.safe_load(done.stdout)
    assert values == {"measurements": wanted}
    assert ReferenceValues.model_validate(values).measurements == wanted
    assert json.loads(run(image, *more, "--output", "json").stdout) == values


def test_firmware_alone_is_said_to_be_alone(image: Path) -> None:
    done = run(image, "--vcpus", "2")
    assert done.exit_code == 0
    assert measured(2, page=None) in done.stdout
    assert "any operating system" in done.stderr


def test_everything_that_is_measured_changes_it(image: Path) -> None:
    def value(*more: str, vcpu_type: str = "EPYC-Milan") -> str:
        done = run(image, *booted(image), *more, vcpu_type=vcpu_type)
        assert done.exit_code == 0, done.output
        return done.stdout.split()[2]

    found = [
        value("--vcpus", "1"),
        value("--vcpus", "1", "--append", "quiet"),
        value("--vcpus", "2"),
        value("--vcpus", "1", "--features", "21"),
        value("--vcpus", "1", "--vmm", "ec2"),
        value("--vcpus", "1", "--vmm", "gce"),
        value("--vcpus", "1", vcpu_type="EPYC-Genoa"),
    ]
    for name in ("kernel", "initrd", "OVMF.fd"):
        content = (image / name).read_bytes()
        (image / name).write_bytes(bytes([content[0] ^ 1]) + content[1:])
        found.append(value("--vcpus", "1"))
    assert len(set(found)) == len(found)


def test_what_cannot_be_measured_is_named(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(*more: str, vcpu_type: str = "EPYC-Milan") -> str:
        done = run(image, "--vcpus", "1", *more, vcpu_type=vcpu_type)
        assert done.exit_code in {1, 2}
        assert done.stdout == ""
        return done.stderr

    assert "known are: EPYC," in said(vcpu_type="Xeon")
    assert "only together with a kernel" in said("--append", "quiet")
    assert "64 bits" in said("--features", "x")
    for content, why in (
        (b"", "not whole pages"),
        (bytes(4097), "not whole pages"),
        (bytes(SIZE), "no SEV metadata"),
        (firmware(sections=((0, 4096, 99),)), "99"),
        (firmware().replace(b"ASEV", b"XSEV"), "signature"),
    ):
        (image / "OVMF.fd").write_bytes(content)
        text = said()
        assert "OVMF.fd is not a firmware" in text
        assert why in text
    (image / "OVMF.fd").write_bytes(firmware(sections=SECTIONS[:3]))
    assert "does not check a kernel" in said(*booted(image))
    monkeypatch.setattr(launch, "guest", None)
    assert "attested-sds[measure]" in said()
