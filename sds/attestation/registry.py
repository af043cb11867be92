"""The registry of kinds of evidence: one line for each.

Owns the list. A kind is one module with a ``KIND`` in it (``sds.attestation.kind.KindOfEvidence``)
and one line here; ``docs/extending.md`` has the recipe. Invariant: this module loads no kind, so an
attester does not pay for kinds that it does not give.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sds.attestation.kind import KindOfEvidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """What is known of a kind without loading its module.

    Attributes:
        module: the module that has ``KIND``.
        provider: the driver's name in configfs-tsm, for kinds that come from there.
        statement: the object identifier of its statement inside a CSR (``attestation.csr``), for
            kinds that may travel in one.
        verified: whether its module makes a verifier; otherwise another part of the program does.
        names_node: whether its claims name a node in place of a measurement.
        machine: the claims that name the machine, the best first.
    """

    module: str
    verified: bool = True
    names_node: bool = False
    machine: tuple[str, ...] = ()
    provider: str | None = None
    statement: str | None = None


KINDS: Final[dict[str, Registered]] = {
    "sev-snp": Registered(
        module="sds.attestation.snp.kind",
        machine=("chip_id",),
        provider="sev_guest",
        # fdaf0823-83b6-4351-8543-0dfe0fcaa9b4: a raw SEV-SNP attestation report
        statement="2.25.337203499956852706580380453425356908980",
    ),
    "tdx": Registered(
        module="sds.attestation.tdx.kind",
        machine=("platform_instance_id", "ppid"),
        provider="tdx_guest",
        # 69c427f2-211c-4dc8-ab73-56f6869d1312: a raw TDX quote
        statement="2.25.140587439939126086308183856599428567826",
    ),
    "azure-snp-vtpm": Registered(
        module="sds.attestation.azure.snp", machine=("vm_vmuniqueid", "chip_id")
    ),
    "azure-tdx-vtpm": Registered(
        module="sds.attestation.azure.tdx",
        machine=("vm_vmuniqueid", "platform_instance_id", "ppid"),
    ),
    "tpm": Registered(module="sds.attestation.tpm.kind", machine=("ek", "ak")),
    "kubernetes-token": Registered(
        module="sds.attestation.kubernetes.kind", verified=False, names_node=True
    ),
}
"""The kinds, by their names on the wire, in policy and in metrics."""


def kind_module(name: str) -> KindOfEvidence:
    """Load the kind of this name.

    Raises:
        KeyError: there is no such kind.
    """
    found: KindOfEvidence = importlib.import_module(KINDS[name].module).KIND
    return found
