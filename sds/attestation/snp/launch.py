"""Computes the launch measurement of a guest from its firmware and what that firmware boots.

Owns the call of the library sev-snp-measure (the extra ``measure``), which computes what the
processor computes (AMD 56860, section 8.17, and QEMU's initial state of a vCPU). Invariant: a file
that cannot be measured is an error that names it; no value is guessed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sds.errors import ConfigurationError

try:
    from sevsnpmeasure import guest, ovmf, vcpu_types, vmm_types
except ImportError:  # an extra
    guest = ovmf = vcpu_types = vmm_types = None

if TYPE_CHECKING:
    from pathlib import Path

PAGE_BYTES: Final = 4096
LARGEST_FIRMWARE: Final = 64 * 1024 * 1024
SNP_ACTIVE: Final = 0x1
"""SEV_FEATURES of a guest that asks for nothing else (AMD APM, volume 2, table B-4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """The files and settings with which a guest is started.

    Attributes:
        firmware: the file that the host maps below 4 GB.
        kernel: the kernel for direct boot with kernel hashes; None if the firmware boots from a
            disk.
        initrd: the initrd beside the kernel.
        command_line: the kernel's command line.
        vcpu_type: the type as QEMU names it: EPYC-v4, EPYC-Milan, ….
        vmm: ``qemu``, ``ec2`` or ``gce``, which differ in what they add and in which order.
        features: SEV_FEATURES.
    """

    firmware: Path
    kernel: Path | None = None
    initrd: Path | None = None
    command_line: str = ""
    vcpu_type: str
    vmm: str = "qemu"
    features: int = SNP_ACTIVE


def launch_measurement(launch: Launch, vcpus: int) -> bytes:
    """Compute the 48 bytes of MEASUREMENT for this number of vCPUs. It blocks, to read the files.

    Raises:
        ConfigurationError: 1. the library is not installed; 2. the type of vCPU is not known;
            3. initrd or command line come without a kernel; 4. the firmware is not one that can be
            measured, or it does not check a kernel; 5. a file cannot be read.
    """
    # 1. - 3.
    if guest is None:
        raise ConfigurationError(
            "measuring needs the package sev-snp-measure",
            advice="install attested-sds[measure]",
        )
    signature = vcpu_types.CPU_SIGS.get(launch.vcpu_type)
    if signature is None:
        raise ConfigurationError(
            f"the vCPU type {launch.vcpu_type!r} is not known",
            advice=f"known are: {', '.join(sorted(vcpu_types.CPU_SIGS))}",
        )
    if launch.kernel is None and (launch.initrd is not None or launch.command_line):
        raise ConfigurationError(
            "an initrd or a command line is measured only together with a kernel",
            advice="give the kernel that the host boots directly",
        )
    try:
        # 4.
        _require_measurable(launch)
        return bytes(
            guest.snp_calc_launch_digest(
                vcpus,
                signature,
                str(launch.firmware),
                str(launch.kernel or ""),
                str(launch.initrd or ""),
                launch.command_line,
                launch.features,
                "",
                _vmm(launch.vmm),
            )
        )
    # 5.
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename} cannot be read: {error.strerror}", advice="give a readable file"
        ) from error
    except (RuntimeError, ValueError, AssertionError, struct.error) as error:
        raise _not_measurable(launch.firmware, str(error)) from error


def _vmm(name: str) -> object:
    return vmm_types.VMMType["QEMU" if name == "qemu" else name]


def _require_measurable(launch: Launch) -> None:
    """Check what the library assumes."""
    size = launch.firmware.stat().st_size
    if size == 0 or size % PAGE_BYTES or size > LARGEST_FIRMWARE:
        raise _not_measurable(launch.firmware, f"it has {size} bytes, not whole pages")
    firmware = ovmf.OVMF(str(launch.firmware))
    if not firmware.metadata_items():
        raise _not_measurable(launch.firmware, "it has no SEV metadata")
    if launch.kernel is not None and not (
        firmware.is_sev_hashes_table_supported()
        and firmware.has_metadata_section(ovmf.SectionType.SNP_KERNEL_HASHES)
    ):
        raise ConfigurationError(
            f"{launch.firmware} does not check a kernel that the host gives: nothing but the "
            "firmware would be measured",
            advice="use a firmware with kernel hashes, such as OVMF's package AmdSev",
        )


def _not_measurable(firmware: Path, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"{firmware} is not a firmware whose SNP measurement can be computed: {why}",
        advice="give the file that the host gives to its VMM (OVMF with SEV-SNP support)",
    )
