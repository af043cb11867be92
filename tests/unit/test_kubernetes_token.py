import base64
import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from sds.attestation.evidence import Evidence, EvidenceKind, report_data
from sds.attestation.kubernetes import token as token_module
from sds.attestation.kubernetes.token import (
    BoundTokenAttester,
    JwksKeys,
    KubernetesTokenVerifier,
    ProjectedTokenAttester,
    TokenRules,
)
from sds.errors import EvidenceError, EvidenceMalformedError
from sds.workload.kubernetes.server import KubernetesServer
from tests.support.refusals import refused

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
DATA = report_data(b"label", [b"nonce", b"items"])
ISSUER = "https://kubernetes.default.svc.cluster.local"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
RULES = TokenRules(issuer=ISSUER, accounts={"attested-sds/agent"})


def jwks() -> bytes:
    keys = []
    for name, algorithm, key in (("rsa", "RS256", RSA), ("ec", "ES256", EC)):
        made = jwt.get_algorithm_by_name(algorithm)
        keys.append({**made.to_jwk(key.public_key(), as_dict=True), "kid": name, "alg": algorithm})
    return json.dumps({"keys": keys}).encode()


def claims(**change: Any) -> dict[str, Any]:
    """As Kubernetes 1.34 makes them for a pod-bound TokenRequest."""
    made = {
        "aud": ["attested-sds:" + DATA.hex()],
        "exp": int((NOW + timedelta(minutes=10)).timestamp()),
        "iat": int(NOW.timestamp()),
        "nbf": int(NOW.timestamp()),
        "iss": ISSUER,
        "jti": "e0a1",
        "kubernetes.io": {
            "namespace": "attested-sds",
            "node": {"name": "node1", "uid": "11"},
            "pod": {"name": "agent-x7", "uid": "d3b0"},
            "serviceaccount": {"name": "agent", "uid": "22"},
        },
        "sub": "system:serviceaccount:attested-sds:agent",
    }
    return {key: value for key, value in {**made, **change}.items() if value is not None}


def token(key: Any = RSA, kid: str | None = "rsa", alg: str = "RS256", **change: Any) -> Evidence:
    headers = {} if kid is None else {"kid": kid}
    made = jwt.encode(claims(**change), key, algorithm=alg, headers=headers)
    return Evidence(kind=EvidenceKind.KUBERNETES_TOKEN, report=made.encode())


def verify(evidence: Evidence, rules: TokenRules = RULES, now: datetime = NOW) -> Any:
    keys = JwksKeys()
    keys.replace(jwks())
    return KubernetesTokenVerifier(keys=keys, rules=rules).verify(evidence, data=DATA, now=now)


@pytest.mark.parametrize("given", [(RSA, "rsa", "RS256"), (EC, "ec", "ES256")])
def test_a_bound_token_holds(given: tuple[Any, str, str]) -> None:
    found = verify(token(*given))
    assert (found.kind, found.measurement) == (EvidenceKind.KUBERNETES_TOKEN, "node1")
    assert found.attributes == {
        "namespace": "attested-sds",
        "service_account": "agent",
        "pod": "agent-x7",
        "pod_uid": "d3b0",
        "node": "node1",
        "bound": "true",
    }


def unsigned() -> Evidence:
    def part(value: Any) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    body = part({"alg": "none", "kid": "rsa"}) + b"." + part(claims()) + b"."
    return Evidence(kind=EvidenceKind.KUBERNETES_TOKEN, report=body)


def confused() -> Evidence:
    """HS256 with the public key as the secret."""
    made = jwt.encode(claims(), b"x" * 64, algorithm="HS256", headers={"kid": "rsa"})
    return Evidence(kind=EvidenceKind.KUBERNETES_TOKEN, report=made.encode())


def raw(report: bytes) -> Evidence:
    return Evidence(kind=EvidenceKind.KUBERNETES_TOKEN, report=report)


def without(*path: str) -> dict[str, Any]:
    body = claims()["kubernetes.io"]
    inner = body
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return {"kubernetes.io": body}


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (raw(b""), "evidence_malformed"),
        (raw(b"a.b.c"), "evidence_malformed"),
        (raw(b"\xff" * 40), "evidence_malformed"),
        (raw(b"a" * 20_000), "evidence_malformed"),
        (unsigned(), "evidence_malformed"),
        (confused(), "evidence_malformed"),
        (token(kid=None), "evidence_malformed"),
        (token(kid="unknown"), "signature_invalid"),
        (token(OTHER), "signature_invalid"),
        (token(RSA, "ec", "RS256"), "signature_invalid"),
        (token(RSA, "rsa", "RS512"), "signature_invalid"),
        (token(iss="https://elsewhere"), "token_claims"),
        (token(iss=None), "token_claims"),
        (token(exp=None), "token_claims"),
        (token(exp="9"), "token_claims"),
        (token(exp=int(NOW.timestamp())), "token_time"),
        (token(nbf=int(NOW.timestamp()) + 60), "token_time"),
        (token(nbf=10**400), "token_claims"),
        (token(nbf=-(10**400), exp=10**400), "token_claims"),
        (token(exp=-(10**400)), "token_claims"),
        (token(exp=float("nan")), "token_claims"),
        (token(exp=float("inf")), "token_claims"),
        (token(exp=True), "token_claims"),
        (token(aud="attested-sds:" + "00" * 64), "report_data_mismatch"),
        (token(aud=["attested-sds:" + DATA.hex(), "more"]), "report_data_mismatch"),
        (token(aud=None), "report_data_mismatch"),
        (token(aud="attested-sds"), "report_data_mismatch"),
        (token(**without("node")), "token_claims"),
        (token(**without("pod")), "token_claims"),
        (token(**without("serviceaccount", "name")), "token_claims"),
        (token(**{"kubernetes.io": "x"}), "token_claims"),
        (token(sub="system:serviceaccount:attested-sds:other"), "token_account"),
        (token(sub=None), "token_account"),
    ],
)
def test_what_does_not_hold_is_refused(evidence: Evidence, reason: str) -> None:
    with pytest.raises(EvidenceError) as caught:
        verify(evidence)
    assert caught.value.reason == reason
    assert evidence.report.decode("latin-1") not in str(caught.value) or not evidence.report


def test_another_account_is_refused() -> None:
    with refused("token_account", match="attested-sds/agent may not"):
        verify(token(), TokenRules(issuer=ISSUER, accounts={"shop/web"}))


def test_a_projected_token_only_where_it_is_allowed_on_purpose() -> None:
    allowed = TokenRules(issuer=ISSUER, accounts={"attested-sds/agent"}, unbound=True)
    assert verify(token(aud="attested-sds"), allowed).attributes["bound"] == "false"
    assert verify(token(), allowed).attributes["bound"] == "true"
    with refused("report_data_mismatch", match="binds nothing"):
        verify(token(aud="attested-sds"))
    with refused("report_data_mismatch"):
        verify(token(aud=ISSUER), allowed)  # the pod's ordinary token


def test_key_sets_are_replaced_as_a_whole_and_bad_ones_change_nothing() -> None:
    keys = JwksKeys()
    keys.replace(jwks())
    for bad in (b"", b"{}", b'{"keys": []}', b'{"keys": [{"kty": "oct", "k": "AA"}]}', b"\xff"):
        with pytest.raises(EvidenceMalformedError):
            keys.replace(bad)
    assert keys.key("rsa").key_id == "rsa"


async def test_no_token_is_read_on_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: list[threading.Thread] = []

    def read(*_: object, **__: object) -> bytes:
        readers.append(threading.current_thread())
        return b"token"

    monkeypatch.setattr(token_module, "read_file", read)
    await ProjectedTokenAttester(tmp_path).attest(DATA)
    server = KubernetesServer(url="https://127.0.0.1:1", token_file=tmp_path)
    with refused("token_unavailable", match="not a JWT"):
        await BoundTokenAttester(server).attest(DATA)
    assert len(readers) == 2
    assert threading.current_thread() not in readers


async def test_a_projected_token_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "token"
    with refused("token_unavailable", match="mounted"):
        await ProjectedTokenAttester(path).attest(DATA)
    path.write_text("one\n")
    attester = ProjectedTokenAttester(path)
    assert (await attester.attest(DATA)).report == b"one"
    path.write_text("two\n")
    assert (await attester.attest(DATA)).report == b"two"


def test_of_a_key_set_only_public_members_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyJWT completes a private key: 32,000 bits of it kept the event loop for 90 s."""
    completed: list[int] = []
    monkeypatch.setattr(
        jwt.algorithms, "rsa_recover_prime_factors", lambda n, _e, _d: completed.append(n)
    )
    (entry, _) = json.loads(jwks())["keys"]
    keys = JwksKeys()
    keys.replace(json.dumps({"keys": [{**entry, "d": "AQAB", "n": "x" * 8000}, entry]}).encode())
    assert not completed
    assert keys.key("rsa").key.public_numbers() == RSA.public_key().public_numbers()


@pytest.mark.parametrize("member", ["kid", "alg", "crv", "n", "x", "use"])
@pytest.mark.parametrize("value", [["text"], {}, 1, None])
def test_a_key_with_a_member_that_is_no_text_takes_no_other_with_it(
    member: str, value: object
) -> None:
    """RFC 7517, section 5: keys that cannot be understood are ignored."""
    entries = json.loads(jwks())["keys"]
    odd = [{**entry, "kid": "odd", member: value} for entry in entries]
    keys = JwksKeys()
    keys.replace(json.dumps({"keys": [*odd, *entries]}).encode())
    assert {keys.key(name).key_id for name in ("rsa", "ec")} == {"rsa", "ec"}


@pytest.mark.parametrize(("most", "value"), [("_MOST_KEYS", 1), ("_MAX_KEY_SET_BYTES", 100)])
def test_a_key_set_is_bounded(most: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = JwksKeys()
    keys.replace(jwks())
    before = keys.key("rsa")
    monkeypatch.setattr(token_module, most, value)
    with pytest.raises(EvidenceMalformedError, match=r"more than|longer than"):
        keys.replace(jwks())
    assert keys.key("rsa") is before
