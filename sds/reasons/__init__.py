"""Defines what each reason means: whether a retry can help, and what a person does about it.

Every error of this program carries a ``reason``, and each reason is one row in the table of its
room. The index of errors in the documentation is made from these rows; adding a refusal adds one.

Invariants: a reason is a stable, lower-case label (``snake_case``) that goes into metrics, into
answers on the wire and into the documentation; renaming one is a breaking change. Tests check that
the program raises every reason, and that every reason it raises is here.
"""

from __future__ import annotations

from typing import Final

from sds.reasons.attestation import ATTESTATION
from sds.reasons.authority import AUTHORITY
from sds.reasons.general import GENERAL
from sds.reasons.policy import POLICY
from sds.reasons.row import Reason
from sds.reasons.serving import SERVING
from sds.reasons.workload import WORKLOAD

__all__ = ["REASONS", "Reason"]

REASONS: Final[dict[str, Reason]] = {
    **GENERAL,
    **ATTESTATION,
    **AUTHORITY,
    **POLICY,
    **WORKLOAD,
    **SERVING,
}
