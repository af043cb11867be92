"""The configuration of a kubelet or an API server, and the parser of its answers.

Invariant: the server's certificate is verified; skipping that must be configured, and works for
127.0.0.1 only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from sds import threads
from sds.errors import ConfigurationError
from sds.settings.https_url import check_https_url

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_LOOPBACK: Final = "127.0.0.1"
_OFF_LOOP_BYTES: Final = 256 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesServer:
    """A kubelet or an API server.

    Attributes:
        url: ``https://host:port``.
        ca_file: PEM roots under which the server's certificate must verify.
        token_file: the file with a bearer token; None sends no token.
        server_name: the name in the server's certificate if it is not the URL's host.
        insecure_skip_verify: whether to skip verification; for 127.0.0.1 only.
        advice: what to do when access is denied.
        reason: the reason of errors that this server causes: ``kubelet`` or ``kubernetes_api``.
    """

    url: str
    ca_file: Path | None = SERVICE_ACCOUNT / "ca.crt"
    token_file: Path | None = SERVICE_ACCOUNT / "token"
    server_name: str | None = None
    insecure_skip_verify: bool = False
    advice: str = field(default="", repr=False)
    reason: str = "kubernetes_api"

    def __post_init__(self) -> None:
        """Refuse what must not be configured."""
        try:
            parts = urlsplit(check_https_url(self.url))
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
        if self.ca_file is None and not self.insecure_skip_verify:
            raise ConfigurationError(
                f"{self.url}: there is no file of roots under which its certificate could be "
                "verified",
                advice="write ca_file",
            )
        if self.insecure_skip_verify and parts.hostname != _LOOPBACK:
            raise ConfigurationError(
                f"the certificate of {self.url} must be verified",
                advice="give its certificate authority; verification can be skipped only to "
                f"{_LOOPBACK}",
            )


async def parse_json(data: bytes) -> Any:
    """Parse JSON, outside the event loop if it is long, in a pool of threads of its own.

    Callers on a socket cause requests to the kubelet, so these answers must never take a thread
    that rotation needs.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    if len(data) < _OFF_LOOP_BYTES:
        return _loads(data)
    return await threads.KUBERNETES.run(_loads, data)


def _loads(data: bytes) -> Any:
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
