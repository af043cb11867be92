"""Reads Intel's signed documents, and finds the TCB level of a platform (PCCS API 4).

Owns the form of TCB info and QE identity, and the algorithm of Intel's quote verification library
(QVL, section 4.1.2.5). Invariants: the form of a document is checked completely before any of it is
compared; levels are compared component by component, in the order of the document.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Final, Literal, NewType, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.alias_generators import to_camel

from sds.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sds.attestation.tdx.pck import Pck

SignedDocument = NewType("SignedDocument", dict[str, object])
"""A document whose signature was verified, but not its form."""

_COMPONENTS: Final = 16
_UP_TO_DATE: Final = "UpToDate"
_OUT_OF_DATE: Final = "OutOfDate"
_RELAUNCH: Final = "TDRelaunchAdvised"
_CONFIGURATION: Final = "ConfigurationNeeded"
_GOOD_PLATFORMS: Final = frozenset(
    {
        _UP_TO_DATE,
        "SWHardeningNeeded",
        _CONFIGURATION,
        "ConfigurationAndSWHardeningNeeded",
    }
)

Byte = Annotated[int, Field(ge=0, le=0xFF)]
Word = Annotated[int, Field(ge=0, le=0xFFFF)]
Hex = Annotated[str, StringConstraints(pattern=r"^(?:[0-9a-fA-F]{2})+$", max_length=256)]
Text = Annotated[str, StringConstraints(max_length=256)]
Moment = Annotated[
    str, StringConstraints(pattern=r"^[0-9]{4}(-[0-9]{2}){2}T([0-9]{2}:){2}[0-9]{2}Z$")
]


class _Part(BaseModel):
    # Strict: a number is a JSON integer, never a float, text or bool.
    model_config = ConfigDict(
        strict=True, frozen=True, extra="ignore", alias_generator=to_camel, allow_inf_nan=False
    )


class _Component(_Part):
    svn: Byte


_Components = Annotated[list[_Component], Field(min_length=_COMPONENTS, max_length=_COMPONENTS)]


class _PlatformTcb(_Part):
    sgx: _Components = Field(alias="sgxtcbcomponents")
    tdx: _Components = Field(alias="tdxtcbcomponents")
    pce_svn: Word = Field(alias="pcesvn")


class _EnclaveTcb(_Part):
    svn: Word = Field(alias="isvsvn")


class _Level(_Part):
    status: Text = Field(alias="tcbStatus")
    date: Text = Field(alias="tcbDate")
    advisories: Annotated[list[Text], Field(max_length=256)] = Field(
        alias="advisoryIDs", default=[]
    )


class _PlatformLevel(_Level):
    tcb: _PlatformTcb


class _EnclaveLevel(_Level):
    tcb: _EnclaveTcb


class _Module(_Part):
    signer: Hex = Field(alias="mrsigner")
    attributes: Hex
    mask: Hex = Field(alias="attributesMask")


class _ModuleIdentity(_Module):
    id: Text
    levels: list[_EnclaveLevel] = Field(alias="tcbLevels")


class TcbInfo(_Part):
    """TCB info of TDX, version 3: the levels of one kind of platform.

    Attributes:
        fmspc: the kind of platform.
        pce_id: the ID of its provisioning certification enclave.
        tcb_type: the composition of levels; Intel defines only 0.
        evaluation_number: tcbEvaluationDataNumber.
        issued: issueDate, RFC 3339 in UTC.
        module: the TDX module of TDX 1.0.
        modules: the TDX modules of later versions.
        levels: the levels, newest first.
    """

    id: Literal["TDX"]
    version: Literal[3]
    fmspc: Hex
    pce_id: Hex
    tcb_type: Annotated[int, Field(ge=0)]
    issued: Moment = Field(alias="issueDate")
    evaluation_number: Annotated[int, Field(ge=0, alias="tcbEvaluationDataNumber")]
    module: _Module = Field(alias="tdxModule")
    modules: list[_ModuleIdentity] = Field(alias="tdxModuleIdentities", default=[])
    levels: list[_PlatformLevel] = Field(alias="tcbLevels")


class EnclaveIdentity(_Part):
    """Identity of the TD quoting enclave, version 2.

    Attributes:
        evaluation_number: tcbEvaluationDataNumber.
        misc_select: MISCSELECT under ``misc_select_mask``; the same for attributes.
        signer: MRSIGNER.
        product_id: ISVPRODID.
        levels: the levels, newest first.
    """

    id: Literal["TD_QE"]
    version: Literal[2]
    evaluation_number: Annotated[int, Field(ge=0, alias="tcbEvaluationDataNumber")]
    misc_select: Hex = Field(alias="miscselect")
    misc_select_mask: Hex = Field(alias="miscselectMask")
    attributes: Hex
    attributes_mask: Hex
    signer: Hex = Field(alias="mrsigner")
    product_id: Word = Field(alias="isvprodid")
    levels: Annotated[list[_EnclaveLevel], Field(alias="tcbLevels", min_length=1)]


class Recovery(_Part):
    """One of Intel's TCB recoveries (PCS 4, "TCB Evaluation Data Numbers").

    Attributes:
        number: tcbEvaluationDataNumber of its TCB info and QE identity.
        event: when it was announced, RFC 3339.
        tcb_date: the oldest TCB date that counts as up to date.
    """

    number: Annotated[int, Field(ge=0, alias="tcbEvaluationDataNumber")]
    event: Moment = Field(alias="tcbRecoveryEventDate")
    tcb_date: Moment


class _Recoveries(_Part):
    """The document of TCB evaluation data numbers of TDX, version 1."""

    id: Literal["TDX"]
    version: Literal[1]
    recoveries: list[Recovery] = Field(alias="tcbEvalNumbers")


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbLevel:
    """What a document says about the level that matched.

    Attributes:
        status: Intel's name, such as UpToDate; TDRelaunchAdvised if the module was updated under
            the running TD and only the TD's launch was by an older one.
        advisories: INTEL-SA numbers.
        date: tcbDate, as it is written.
    """

    status: str
    advisories: tuple[str, ...]
    date: str


_Document = TypeVar("_Document", TcbInfo, EnclaveIdentity, _Recoveries)


def read_tcb_info(document: SignedDocument) -> TcbInfo:
    """Read the document into typed values.

    Raises:
        EvidenceError: ``collateral_untrusted``: it is not TDX's TCB info of version 3, or is
            malformed.
    """
    return _read(TcbInfo, document, "tcbInfo")


def read_enclave_identity(document: SignedDocument) -> EnclaveIdentity:
    """Read the document into typed values.

    Raises:
        EvidenceError: ``collateral_untrusted``: it is not the TD quoting enclave's identity of
            version 2, or is malformed.
    """
    return _read(EnclaveIdentity, document, "enclaveIdentity")


def read_recoveries(document: SignedDocument) -> list[Recovery]:
    """Read the TCB recoveries of a document, the newest first.

    Raises:
        EvidenceError: ``collateral_untrusted``: it is not TDX's list of version 1, or is malformed.
    """
    found = _read(_Recoveries, document, "tcbEvaluationDataNumbers").recoveries
    return sorted(found, key=lambda one: one.number, reverse=True)


def _read(form: type[_Document], document: Mapping[str, object], name: str) -> _Document:
    try:
        return form.model_validate(document)
    except (ValidationError, RecursionError) as error:
        raise EvidenceError(
            f"{name} is malformed: {_first(error)}", reason="collateral_untrusted"
        ) from None


def _first(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    one = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, one['loc']))}: {one['msg']}"[:200]


def platform_level(info: TcbInfo, pck: Pck, tee_tcb_svn: bytes) -> TcbLevel:
    """Return the first level that the platform reaches (QVL, 4.1.2.5.2.1).

    Every SGX component of the PCK, its PCE security version and every TDX component of the quote
    must reach the level's. With a TDX module of 1.5 or later the first two TDX components are the
    module's own, and are compared in :func:`module_level`.

    Args:
        info: the platform's TCB info.
        pck: the platform's PCK.
        tee_tcb_svn: the 16 bytes of the quote.

    Raises:
        EvidenceError: ``tcb_status``: it reaches none.
    """
    first = 2 if tee_tcb_svn[1] > 0 else 0
    for level in info.levels:
        if _sgx_reached(level, pck) and all(
            tee_tcb_svn[index] >= level.tcb.tdx[index].svn for index in range(first, _COMPONENTS)
        ):
            return _level(level)
    raise EvidenceError("the platform reaches no TCB level of the collateral", reason="tcb_status")


def module_level(
    info: TcbInfo, *, tee_tcb_svn: bytes, mr_signer: bytes, attributes: bytes
) -> TcbLevel | None:
    """Return the TDX module's level; None for modules before 1.5, which have no level of their own.

    Raises:
        EvidenceError: ``tdx_module``: the collateral knows no such module, or its signer or
            attributes differ. ``tcb_status``: it reaches no level (QVL, "TCB not supported").
    """
    version, svn = tee_tcb_svn[1], tee_tcb_svn[0]
    later = _module(info, version)
    module = info.module if version == 0 else later
    if module is None:
        raise EvidenceError(
            f"the collateral knows no TDX module of version {version}", reason="tdx_module"
        )
    if mr_signer != bytes.fromhex(module.signer):
        raise EvidenceError("the TDX module has another signer", reason="tdx_module")
    if not same_under_mask(attributes, module.mask, module.attributes):
        raise EvidenceError("the TDX module has other attributes", reason="tdx_module")
    if later is None or version == 0:
        return None
    found = _enclave_level(later.levels, svn)
    if found is None:
        raise EvidenceError(
            f"the TDX module's security version {svn} reaches no level", reason="tcb_status"
        )
    return found


def enclave_level(identity: EnclaveIdentity, security_version: int) -> TcbLevel:
    """Return the quoting enclave's level.

    Raises:
        EvidenceError: ``tcb_status``: it reaches none (QVL, "TCB not supported").
    """
    found = _enclave_level(identity.levels, security_version)
    if found is None:
        raise EvidenceError(
            f"the quoting enclave's version {security_version} reaches no level",
            reason="tcb_status",
        )
    return found


def with_relaunch_advised(
    levels: Mapping[str, TcbLevel], info: TcbInfo, pck: Pck, tee_tcb_svn_2: bytes | None
) -> dict[str, TcbLevel]:
    """Return the levels, with another status if only the TD's launch is out of date.

    A TD-preserving update replaced the TDX module under the running TD: the module that launched
    it is out of date, the one that runs now (TEE_TCB_SVN_2) reaches the newest level, and the rest
    of the platform is good. Intel's QVL calls that "TD relaunch advised" (4.1.2.4.17.4.3).

    Args:
        levels: the levels of the launch, by ``platform``, ``module`` and ``qe``.
        info: the platform's TCB info.
        pck: the platform's PCK.
        tee_tcb_svn_2: 16 bytes, or None for quotes of TDX 1.0.
    """
    platform = next((one.status for one in info.levels if _sgx_reached(one, pck)), "")
    module, enclave = levels.get("module"), levels.get("qe")
    if (
        tee_tcb_svn_2 is None
        or module is None
        or module.status != _OUT_OF_DATE
        or platform not in _GOOD_PLATFORMS
        or (enclave is not None and enclave.status != _UP_TO_DATE)
        or not _newest(info, tee_tcb_svn_2)
    ):
        return dict(levels)
    return {
        name: _advised(level, platform) if name in {"platform", "module"} else level
        for name, level in levels.items()
    }


def _advised(level: TcbLevel, platform: str) -> TcbLevel:
    if not level.status.startswith(_OUT_OF_DATE):
        return level
    configuration = "Configuration" in platform or "Configuration" in level.status
    return replace(level, status=_RELAUNCH + (_CONFIGURATION if configuration else ""))


def _newest(info: TcbInfo, svn: bytes) -> bool:
    """Say whether the running module reaches the newest level in everything that it counts in."""
    if not info.levels:
        return False
    tdx = info.levels[0].tcb.tdx
    if svn[1] == 0:
        return svn[0] >= tdx[0].svn and svn[2] >= tdx[2].svn
    module = _module(info, svn[1])
    return (
        module is not None
        and bool(module.levels)
        and svn[0] >= module.levels[0].tcb.svn
        and svn[2] >= tdx[2].svn
    )


def _module(info: TcbInfo, version: int) -> _ModuleIdentity | None:
    return next((one for one in info.modules if one.id.upper() == f"TDX_{version:02X}"), None)


def _sgx_reached(level: _PlatformLevel, pck: Pck) -> bool:
    return pck.pce_svn >= level.tcb.pce_svn and all(
        have >= need.svn for have, need in zip(pck.components, level.tcb.sgx, strict=True)
    )


def _enclave_level(levels: Sequence[_EnclaveLevel], svn: int) -> TcbLevel | None:
    return next((_level(one) for one in levels if svn >= one.tcb.svn), None)


def _level(level: _Level) -> TcbLevel:
    return TcbLevel(status=level.status, advisories=tuple(level.advisories), date=level.date)


def same_under_mask(value: bytes, mask: str, wanted: str) -> bool:
    """Say whether the bits of ``mask`` equal those of ``wanted`` (both hex, of one length)."""
    bits, right = bytes.fromhex(mask), bytes.fromhex(wanted)
    return len(value) == len(bits) == len(right) and right == bytes(
        have & keep for have, keep in zip(value, bits, strict=True)
    )
