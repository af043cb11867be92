"""Kubernetes service-account tokens as a kind of evidence."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from sds.attestation.kind import KindOfEvidence
from sds.attestation.kubernetes.token import BoundTokenAttester, ProjectedTokenAttester
from sds.workload.kubernetes.settings import api_server

if TYPE_CHECKING:
    from sds.attestation.kubernetes.token import TokenAttester
    from sds.attestation.settings import AttestationSection

_LOGGER = logging.getLogger(__name__)


def _attester(section: AttestationSection) -> TokenAttester:
    if section.projected_token is not None:
        _LOGGER.warning(
            "the projected token that is sent as evidence binds nothing: anybody who sees it can "
            "use it until it expires",
            extra={"path": str(section.projected_token)},
        )
        return ProjectedTokenAttester(section.projected_token)
    return BoundTokenAttester(api_server(section.api, os.environ))


KIND = KindOfEvidence(
    # Verified by ``sds.ca.kubernetes``, which watches the cluster's pods.
    title="Kubernetes service-account token",
    attester=_attester,
)
