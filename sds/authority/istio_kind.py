"""Istio's authority, as the agent's registry of authorities knows it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from sds.authority.istio import IstioAuthority, bearer_token
from sds.errors import SdsError
from sds.pki import certificates_from_pem
from sds.settings.yamlfile import read

if TYPE_CHECKING:
    from collections.abc import Callable

    from sds.authority.istio_settings import IstioSettings
    from sds.clock import Clock

ISTIO_LIFETIME: Final = timedelta(hours=24)
"""The lifetime that pilot-agent asks for (``SECRET_TTL``), and istiod's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Istio:
    elsewhere: timedelta = ISTIO_LIFETIME

    def client(self, section: IstioSettings, *, clock: Clock) -> IstioAuthority:
        return IstioAuthority(section, clock=clock)

    def check(self, section: IstioSettings, problem: Callable[[str, str], None]) -> None:
        try:
            certificates_from_pem(read(section.root))
        except SdsError as error:
            problem("authority.root", str(error))
        try:
            bearer_token(read(section.token), section.token)
        except SdsError as error:
            problem("authority.token", str(error))


KIND: Final = _Istio()
