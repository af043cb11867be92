"""The reference values of PCRs, and the checks against them.

Owns the model that the vTPM kinds and ``tpm`` share in ``reference_values.others``. Invariant: a
required PCR that was not quoted is refused, never ignored.
"""

# ruff: noqa: RUF012  pydantic copies the defaults of fields

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    field_validator,
    model_validator,
)

from sds.attestation.exchange_key.events import check_exchange_key
from sds.attestation.tpm.attest import PCRS
from sds.attestation.tpm.register import ALGORITHM, LAST_PCR
from sds.errors import ConfigurationError, EvidenceError
from sds.settings import yamlfile
from sds.settings.field_types import Written

if TYPE_CHECKING:
    from sds.attestation.checks import Checks
    from sds.attestation.evidence import ExchangeProof, ReportData
    from sds.attestation.reference_values import ReferenceValues
    from sds.attestation.tpm.quote import VerifiedQuote

Digest = Annotated[str, Field(pattern=r"^(?:[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128})$")]


class PcrValues(Written):
    """What a quote must show.

    Attributes:
        pcrs: index (0 to 23) -> accepted values, hex; a PCR that is not named may have any.
        exchange_key_pcr: evidence must be signed by the key that early boot measured into this PCR
            (0 to 15), so that no other process of the guest can give evidence for an exchange.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pcrs: dict[int, Annotated[list[Digest], Field(min_length=1)]] = {}
    exchange_key_pcr: Annotated[StrictInt, Field(ge=0, le=LAST_PCR)] | None = None

    @model_validator(mode="after")
    def _another_pcr(self) -> Self:
        if self.exchange_key_pcr in self.pcrs:
            raise ValueError(
                "exchange_key_pcr is among pcrs: every boot measures another key into it"
            )
        return self

    @field_validator("pcrs")
    @classmethod
    def _indices(cls, pcrs: dict[int, list[str]]) -> dict[int, list[str]]:
        if any(not 0 <= pcr < PCRS for pcr in pcrs):
            raise ValueError(f"PCRs are 0 to {PCRS - 1}")
        return pcrs


_Values = TypeVar("_Values", bound=BaseModel)


def own_values(kind: str, model: type[_Values], values: ReferenceValues) -> _Values:
    """Return what ``others`` demands of one kind.

    Raises:
        EvidenceError: the kind does not have such reference values.
    """
    what = f"reference_values.others.{kind}"
    try:
        return yamlfile.validate(values.others.get(kind, {}), model, what=what)
    except ConfigurationError as error:
        raise EvidenceError(
            error.message, advice="docs/attestation.md lists what may be demanded of each kind"
        ) from error


def appraise_pcrs(checks: Checks, quote: VerifiedQuote | None, values: PcrValues) -> None:
    """Add one check for each required PCR."""
    for pcr, accepted in sorted(values.pcrs.items()):
        found = quote.pcrs.get(pcr) if quote is not None else None
        checks.among(
            f"pcr{pcr}",
            "pcr",
            found=found.hex() if found is not None else "not quoted",
            accepted=accepted,
        )


def appraise_exchange_key(
    checks: Checks,
    quote: VerifiedQuote | None,
    values: PcrValues,
    *,
    proof: ExchangeProof | None,
    data: ReportData | None,
) -> dict[str, str]:
    """Add the checks of the exchange key if one is required, and return its claim.

    Args:
        checks: where the outcome goes.
        quote: the verified quote; without it, another check refuses.
        values: the reference values.
        proof: the proof that came with the evidence.
        data: the report data that the quote binds.
    """
    if values.exchange_key_pcr is None or quote is None:
        return {}
    register = quote.pcrs.get(values.exchange_key_pcr, b"")
    # Only this bank was capped; any process can still extend the same PCR of another bank.
    if not checks.add(
        "exchange_key_bank",
        "exchange_key_register",
        ok=quote.bank == ALGORITHM and bool(register),
        found=quote.bank if register else "PCR not quoted",
        expected=f"PCR {values.exchange_key_pcr} of the bank {ALGORITHM}",
    ):
        return {}
    return check_exchange_key(
        checks,
        proof,
        register=register,
        report_data=data or b"",
        algorithm=ALGORITHM,
        required=True,
    )


def claims_of_quote(quote: VerifiedQuote | None) -> dict[str, str]:
    """Return the claims of a verified quote: PCRs, bank, and how often the TPM started."""
    if quote is None:
        return {}
    return {
        "pcr_bank": quote.bank,
        "tpm_resets": str(quote.attest.resets),
        "tpm_restarts": str(quote.attest.restarts),
        "tpm_firmware": f"{quote.attest.firmware:#018x}",
        **{f"pcr{pcr}": value.hex() for pcr, value in quote.pcrs.items()},
    }
