"""A Kubernetes service-account token as evidence, for nodes without confidential hardware.

Owns both sides: an attester that asks for a token of its own pod (bound, by its audience, to the
nonce and every item of one request) or reads a projected one, and the verifier. Invariants: because
a token is a bearer credential, it is sent only over TLS verified against a configured root, and is
in no log, message or ``repr``; a bound token counts for exactly one request; a projected one binds
nothing and is accepted only if the verifier's configuration says so.

Trust: anyone who controls the API server (or its signing key) can make such evidence for any node.
So can whoever may ask TokenRequest for an agent's account and is not held to their own pod: a
deployment needs an admission policy for that, as deploy/overlays/plain has it. The token says for
which pod it was made, not which code runs. Sources: RFC 7519; Kubernetes, "Managing Service
Accounts" (bound tokens, ``kubernetes.io`` claims, node name since 1.32).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import jwt
from cryptography.exceptions import UnsupportedAlgorithm

from sds import threads
from sds.attestation.evidence import Claims, Evidence, EvidenceKind
from sds.errors import EvidenceError, EvidenceMalformedError, KubernetesError
from sds.files import read_file
from sds.workload.kubernetes.server import SERVICE_ACCOUNT

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sds.attestation.evidence import ReportData
    from sds.workload.kubernetes.server import KubernetesServer

AUDIENCE_PREFIX: Final = "attested-sds:"
"""The prefix of a bound token's audience; the report data in lower-case hexadecimal follows."""
UNBOUND_AUDIENCE: Final = "attested-sds"
PROJECTED_TOKEN: Final = Path("/var/run/secrets/attested-sds/token")
_MAX_TOKEN_BYTES: Final = 16_384
_ALGORITHMS: Final = frozenset({"RS256", "RS384", "RS512", "ES256", "ES384", "ES512"})
_LIFETIME: Final = timedelta(minutes=10)  # the shortest that TokenRequest gives
_LEEWAY: Final = timedelta(seconds=30)
_UNREADABLE: Final = (
    jwt.PyJWTError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
    UnsupportedAlgorithm,
)
"""The errors of PyJWT and its parsers for tokens and key sets that they cannot read."""
_KEY_TYPES: Final = ("RSA", "EC")
_PUBLIC: Final = frozenset({"kty", "kid", "alg", "use", "n", "e", "crv", "x", "y"})
"""The members of a public key. PyJWT completes a private one, which takes hours if it is long."""
_MAX_KEY_SET_BYTES: Final = 256 * 1024
_MOST_KEYS: Final = 128
"""Of a key set; a cluster has two or three."""
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)


# --- the attester -------------------------------------------------------------------------------


class BoundTokenAttester:
    """Asks TokenRequest for a token whose audience is the report data.

    Needs RBAC ``create`` on ``serviceaccounts/token`` of the own account.
    """

    def __init__(self, server: KubernetesServer) -> None:
        """Ask this API server; its token file says which account and pod we are."""
        self._server = server

    async def attest(self, data: ReportData) -> Evidence:
        """Fetch a token of our own pod, bound to ``data`` by its audience.

        Raises:
            EvidenceError: ``token_unavailable``: the API server gives none.
        """
        from sds.workload.kubernetes.api import ApiClient  # noqa: PLC0415  measured: loads aiohttp, 8 MB

        claims = _unverified(await _read(self._server.token_file or SERVICE_ACCOUNT / "token"))
        try:
            ours = claims["kubernetes.io"]
            namespace, account = ours["namespace"], ours["serviceaccount"]["name"]
            pod = ours["pod"]
            document = {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {
                    "audiences": [AUDIENCE_PREFIX + data.hex()],
                    "expirationSeconds": int(_LIFETIME.total_seconds()),
                    "boundObjectRef": {
                        "apiVersion": "v1",
                        "kind": "Pod",
                        "name": pod["name"],
                        "uid": pod["uid"],
                    },
                },
            }
            path = f"/api/v1/namespaces/{_name(namespace)}/serviceaccounts/{_name(account)}/token"
            # Each request has a connection of its own, because requests are minutes apart.
            async with ApiClient(self._server) as api:
                body = await api.post(path, document)
            token = json.loads(body)["status"]["token"].encode("ascii")
        except KubernetesError as error:
            raise EvidenceError(
                error.message, advice=error.advice, reason="token_unavailable"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            # Show only the kind of error, because the text of some errors may contain the token.
            raise EvidenceError(
                "our own token or the answer to TokenRequest is not as expected: "
                f"{type(error).__name__}",
                reason="token_unavailable",
            ) from None
        return Evidence(kind=EvidenceKind.KUBERNETES_TOKEN, report=token)


class ProjectedTokenAttester:
    """Reads a projected token; it is the same for every request and binds nothing."""

    def __init__(self, path: Path = PROJECTED_TOKEN) -> None:
        """Read this file for each request, because the kubelet renews it."""
        self._path = path

    async def attest(self, data: ReportData) -> Evidence:
        """Read the projected token, which binds nothing.

        Raises:
            EvidenceError: ``token_unavailable``: the file cannot be read.
        """
        del data
        return Evidence(kind=EvidenceKind.KUBERNETES_TOKEN, report=await _read(self._path))


TokenAttester = BoundTokenAttester | ProjectedTokenAttester
"""The attesters whose evidence is a bearer credential, which is never shown to people."""


# --- the verifier -------------------------------------------------------------------------------


class KeySet(Protocol):
    """The issuer's keys."""

    def key(self, key_id: str) -> jwt.PyJWK:
        """Return the key with this ID.

        Raises:
            EvidenceError: ``signature_invalid``: there is no such key.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """What a token must be.

    Attributes:
        issuer: the cluster's service-account issuer.
        accounts: ``namespace/name`` of accounts that agents and authorities run as.
        unbound: whether a projected token is accepted.
    """

    issuer: str
    accounts: Collection[str]
    unbound: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesTokenVerifier:
    """Verifies tokens; see :meth:`verify`."""

    keys: KeySet
    rules: TokenRules

    def verify(self, evidence: Evidence, *, data: ReportData, now: datetime) -> Claims:
        """Check a token. In this order:

        1. it is a JWS of bounded size with a known asymmetric algorithm and a key ID;
        2. its signature is valid under the issuer's key with that ID, which is of that algorithm;
        3. its issuer is the configured one;
        4. it is valid at ``now``;
        5. its audience is the one of this very request, alone; or, where that is allowed, the
           configured one of projected tokens;
        6. it is bound to a pod and tells the node that the pod runs on;
        7. its account is one of the configured ones, and its subject is that account.

        Raises:
            EvidenceError: a subclass that names the first check that failed.
        """  # noqa: D415  a list follows
        token = evidence.report
        claims = self._signed(token)  # 1 and 2
        if claims.get("iss") != self.rules.issuer:  # 3
            raise EvidenceError(
                f"the token's issuer is {str(claims.get('iss'))[:200]!r}",
                advice=f"this authority takes tokens of {self.rules.issuer!r}",
                reason="token_claims",
            )
        _check_time(claims, now)  # 4
        bound = self._check_audience(claims, data)  # 5
        identity = _identity(claims)  # 6
        account = f"{identity['namespace']}/{identity['service_account']}"
        subject = f"system:serviceaccount:{account.replace('/', ':')}"
        if account not in self.rules.accounts or claims.get("sub") != subject:  # 7
            raise EvidenceError(
                f"the service account {account} may not ask for certificates",
                advice="name it under kubernetes.service_accounts of the authority",
                reason="token_account",
            )
        return Claims(
            kind=EvidenceKind.KUBERNETES_TOKEN,
            measurement=identity["node"],
            simulated=False,
            attributes={**identity, "bound": str(bound).lower()},
        )

    def _signed(self, token: bytes) -> dict[str, Any]:
        if len(token) > _MAX_TOKEN_BYTES:
            raise EvidenceMalformedError(f"the token is longer than {_MAX_TOKEN_BYTES} bytes")
        try:
            header = jwt.get_unverified_header(token)
        except _UNREADABLE as error:
            raise EvidenceMalformedError("the evidence is not a JSON web token") from error
        algorithm, key_id = header.get("alg"), header.get("kid")
        # JSON may give any type here, even one that is not hashable.
        if not isinstance(algorithm, str) or algorithm not in _ALGORITHMS:
            raise EvidenceMalformedError(
                f"the token's algorithm {str(algorithm)[:20]!r} is not accepted"
            )
        if not isinstance(key_id, str):
            raise EvidenceMalformedError("the token names no key")
        key = self.keys.key(key_id)
        if key.algorithm_name != algorithm:
            raise EvidenceError(
                "the token's algorithm is not its key's", reason="signature_invalid"
            )
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                options={
                    "verify_signature": True,
                    # We check these ourselves, at the given time:
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_aud": False,
                    "verify_iss": False,
                },
            )
        except jwt.InvalidSignatureError as error:
            raise EvidenceError(
                "the token's signature is invalid", reason="signature_invalid"
            ) from error
        except _UNREADABLE as error:
            raise EvidenceMalformedError("the token cannot be decoded") from error
        return claims

    def _check_audience(self, claims: Mapping[str, Any], data: ReportData) -> bool:
        audience = claims.get("aud")
        audiences = [audience] if isinstance(audience, str) else audience
        if audiences == [AUDIENCE_PREFIX + data.hex()]:
            return True
        if self.rules.unbound and audiences == [UNBOUND_AUDIENCE]:
            return False
        if isinstance(audiences, list) and UNBOUND_AUDIENCE in audiences:
            raise EvidenceError(
                "the token is a projected one, which binds nothing",
                advice="let the agent ask for bound tokens (RBAC create on serviceaccounts/token), "
                "or accept projected ones with kubernetes.unbound_tokens",
                reason="report_data_mismatch",
            )
        raise EvidenceError(
            "the token's audience is not this request's", reason="report_data_mismatch"
        )


def _check_time(claims: Mapping[str, Any], now: datetime) -> None:
    expires, begins = _seconds(claims.get("exp")), _seconds(claims.get("nbf", claims.get("iat")))
    if expires is None or begins is None:
        raise EvidenceError(
            "the token does not say from when to when it is valid", reason="token_claims"
        )
    if not begins - _LEEWAY.total_seconds() <= now.timestamp() < expires:
        try:
            until = datetime.fromtimestamp(expires, UTC).isoformat()
        except (ValueError, OverflowError, OSError):  # a number that is not a date
            until = f"{expires:g}"
        raise EvidenceError(
            f"the token is not valid now (it is until {until})",
            advice="check the clocks of the cluster",
            reason="token_time",
        )


def _seconds(claim: object) -> float | None:
    """Read a NumericDate (RFC 7519, section 2); None if it is not a finite number.

    Python's JSON also gives NaN, Infinity and integers that do not fit into a float.
    """
    if isinstance(claim, bool) or not isinstance(claim, int | float):
        return None
    try:
        seconds = float(claim)
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) else None


def _identity(claims: Mapping[str, Any]) -> dict[str, str]:
    try:
        ours = claims["kubernetes.io"]
        found = {
            "namespace": ours["namespace"],
            "service_account": ours["serviceaccount"]["name"],
            "pod": ours["pod"]["name"],
            "pod_uid": ours["pod"]["uid"],
            "node": ours["node"]["name"],
        }
    except (KeyError, TypeError) as error:
        raise EvidenceError(
            f"the token lacks the claim {error}",
            advice="it must be bound to a pod, and the cluster be Kubernetes 1.32 or later (which "
            "puts the node into tokens)",
            reason="token_claims",
        ) from error
    for name, value in found.items():
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            raise EvidenceError(f"the token's claim {name!r} is not a name", reason="token_claims")
    return found


# --- the issuer's keys --------------------------------------------------------------------------


@dataclass(slots=True)
class JwksKeys:
    """Public keys of a JWKS document (RFC 7517), replaced as a whole."""

    _keys: dict[str, jwt.PyJWK] = field(default_factory=dict, repr=False)

    def replace(self, document: bytes) -> None:
        """Take the keys of this document; a bad one changes nothing.

        Only the public members of keys that can sign tokens are read. A key that cannot be used is
        ignored (RFC 7517, section 5); a member that is not text counts as missing.

        Raises:
            EvidenceMalformedError: it is not a JWKS, is too large, or has no key that we can use.
        """
        if len(document) > _MAX_KEY_SET_BYTES:
            raise EvidenceMalformedError(
                f"the issuer's key set is longer than {_MAX_KEY_SET_BYTES} bytes"
            )
        try:
            public = [
                {
                    name: text
                    for name, text in key.items()
                    if name in _PUBLIC and isinstance(text, str)
                }
                for key in json.loads(document.decode()).get("keys", [])
                if isinstance(key, dict) and key.get("kty") in _KEY_TYPES
            ]
            if len(public) > _MOST_KEYS:
                raise ValueError(f"it has more than {_MOST_KEYS} keys")
            found = jwt.PyJWKSet.from_dict({"keys": public}).keys
            keys = {key.key_id: key for key in found if key.key_id is not None}
        except _UNREADABLE as error:
            raise EvidenceMalformedError(f"the issuer's key set cannot be used: {error}") from error
        if not keys:
            raise EvidenceMalformedError("the issuer's key set names no key")
        self._keys = keys

    def key(self, key_id: str) -> jwt.PyJWK:
        found = self._keys.get(key_id)
        if found is None:
            raise EvidenceError(
                "the token is signed with a key that is not in the cluster's key set",
                advice="check that the token is of this cluster, and that its keys are up to date",
                reason="signature_invalid",
            )
        return found


def _unverified(token: bytes) -> dict[str, Any]:
    """Return the claims of our own token, unverified: only the server's answer to it matters."""
    try:
        claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    except _UNREADABLE:
        raise EvidenceError(
            "our own service-account token is not a JWT", reason="token_unavailable"
        ) from None
    return claims


async def _read(path: Path) -> bytes:
    try:
        content = await threads.KUBERNETES_FILES.run(read_file, path, max_bytes=_MAX_TOKEN_BYTES)
    except OSError as error:
        raise EvidenceError(
            f"the token {path} cannot be read: {error.strerror}",
            advice="check that it is mounted into this pod",
            reason="token_unavailable",
        ) from error
    return content.strip()


def _name(text: Any) -> str:
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        raise ValueError("a malformed name")
    return text
