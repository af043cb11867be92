"""``sds policy explain`` and a real Envoy decide the same about policies, peers and requests.

Policies, names and paths are drawn from few that are near to each other. Each policy gets a
listener of one Envoy, whose settings are those of ``sds bootstrap``; each request goes over mTLS,
as bytes that no client library would send.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from envoy.config.core.v3 import extension_pb2
from google.protobuf.json_format import MessageToDict

from sds.bootstrap.build import make_bootstrap
from sds.bootstrap.plan import Endpoint, Inbound, SecretSource
from sds.bootstrap.render import to_dict
from sds.identity import SpiffeId
from sds.policy.authorization import rules_for
from sds.policy.authorized import Authorization
from sds.policy.decision import Decisions
from sds.policy.document import PolicyDocument
from sds.policy.explanation import explain_request
from sds.policy.requests import Request
from sds.serving.authorization import http_filter
from sds.settings import yamlfile
from tests.support.certificates import Signer, Wish, ca_wish, self_signed
from tests.support.envoy import NEWEST, VERSIONS, running_envoy
from tests.support.policies import document

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.support.envoy import Envoy

pytestmark = pytest.mark.e2e

OURS, PARTNER = "spiffe://example.org", "spiffe://partner.org"
TARGET = SpiffeId.parse(f"{OURS}/db")
PEERS = {
    "web": (f"{OURS}/web",),
    "web-2": (f"{OURS}/web-2",),
    "ops": (f"{OURS}/ops/a",),
    "deep": (f"{OURS}/ops/a/b",),
    "partner": (f"{PARTNER}/web",),
    # What a partner's authority can make, and ours never does.
    "forged": (f"{PARTNER}/x", f"{OURS}/web"),
    "forged too": (f"{PARTNER}/x", f"{OURS}/ops/a"),
}
STRANGERS = {
    "upper case": ("spiffe://EXAMPLE.ORG/web",),
    "same path": (f"{PARTNER}/web",),
    "no name": ("urn:x", f"{OURS}/web"),
}
"""Peers that no rule for ``web`` of our trust domain means."""
_CASES = 300


class Question(NamedTuple):
    """One policy, and one request of one peer."""

    allow: list[dict[str, Any]]
    enforce: bool
    peer: str
    method: str
    path: str
    host: str


SOURCES = (
    *(f"{OURS}/{one}" for one in ("web", "web*", "*", "ops/*", "ops/**", "**")),
    *(f"{PARTNER}/{one}" for one in ("web", "**", "w*")),
)
METHODS = ("GET", "HEAD", "POST", "PURGE")
PATH_PATTERNS = (
    *("/", "/a", "/a/", "/a/b", "/A", "/a/*", "/a/**", "/a*", "/a*/**", "/*", "/**", "/*/b"),
    *("/a/b*", "/.a/**", "/a/*/c", "/caf%C3%A9/*"),
)
PIECES = (
    *("/", "a", "b", "A", "/a", "/b", "/a/b", "//", "/./", "/../", "/..", "/.", "..;", ";x"),
    *("%2f", "%2F", "%2e", "%2e%2e/", "%5c", "\\", "%61", "%3b", "%25", "%252f", "?x=/a", "#"),
    *("*", "c", "/.a", "%C3%A9", "%c0%ae", "%00", "%0a", "~", "'", "..."),
)
NEAR_PATHS = ("/", "/a", "/a/", "/a/b", "/a/b/c", "/a//b", "/a/b/", "/b", "/.a/x", "/a/x/../b")
HOST_PATTERNS = ("h.org", "*.h.org", "**.org", "a*.org")
HOSTS = (
    *("h.org", "H.ORG", "h.org:8443", "h.org.", "h.org.:1", "a.h.org", "a.b.h.org", "xh.org"),
    *("h.org", "h.org", "h.org"),
)


class Drawing:
    """Draws questions; the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def _some(self, values: Sequence[str], most: int) -> list[str]:
        return self._random.sample(values, self._random.randint(1, most))

    def _requests(self) -> dict[str, Any]:
        chance = self._random.random
        fields: dict[str, Any] = {}
        if chance() < 0.4:
            fields["methods"] = self._some(METHODS, 2)
        if chance() < 0.7 or not fields:
            fields["paths"] = self._some(PATH_PATTERNS, 4)
        if chance() < 0.3:
            fields["hosts"] = self._some(HOST_PATTERNS, 2)
        if chance() < 0.05:
            fields["ports"] = [1]
        return fields

    def _rule(self) -> dict[str, Any]:
        chance = self._random.random
        rule: dict[str, Any] = {
            "from": self._some(SOURCES, 2),
            "to": self._random.choice((f"{OURS}/db", f"{OURS}/d*", f"{OURS}/*", f"{OURS}/other")),
        }
        if chance() < 0.85:
            rule["requests"] = [self._requests() for _ in range(self._random.randint(1, 2))]
            rule["requests_enforce"] = chance() < 0.85
        return rule

    def question(self) -> Question:
        choice, chance = self._random.choice, self._random.random
        pieces = self._random.choices(PIECES, k=self._random.randint(1, 5))
        return Question(
            allow=[self._rule() for _ in range(self._random.randint(0, 4))],
            enforce=chance() < 0.95,
            peer=choice(sorted(PEERS)),
            method=choice(METHODS),
            path=choice(NEAR_PATHS) if chance() < 0.5 else "/" + "".join(pieces),
            host=choice(HOSTS),
        )


def policy(question: Question) -> PolicyDocument:
    fields = document(allow=question.allow, requests_enforce=question.enforce)
    return yamlfile.validate(fields, PolicyDocument, what="drawn")


def explained(question: Question, port: int) -> bool:
    """What ``explain`` says; the peer is whom its certificate names first."""
    request = Request(method=question.method, path=question.path, host=question.host, port=port)
    source = SpiffeId.parse(PEERS[question.peer][0])
    return explain_request(policy(question), source, TARGET, request).allowed


class Certificates:
    """Two trust domains and a client certificate for each peer."""

    def __init__(self, folder: Path) -> None:
        now = datetime.now(UTC)
        window: dict[str, Any] = {
            "not_before": now - timedelta(hours=1),
            "not_after": now + timedelta(hours=2),
        }
        self._window = window
        self.roots = {
            domain: self_signed(
                Wish(
                    subject=ca_wish(domain).subject,
                    constraints=ca_wish(domain).constraints,
                    usage=ca_wish(domain).usage,
                    extended=(),
                    **window,
                )
            )
            for domain in ("example.org", "partner.org")
        }
        self.server = self._leaf("example.org", (str(TARGET),))
        self.clients = {}
        for name, uris in (PEERS | STRANGERS).items():
            domain = uris[-1].removeprefix("spiffe://").partition("/")[0].lower()
            domain = "partner.org" if uris[0].startswith(PARTNER) else domain
            file = folder / f"{name}.pem"
            leaf = self._leaf(domain, uris)
            file.write_bytes(pem(leaf) + key(leaf))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.load_cert_chain(file)
            self.clients[name] = context

    def _leaf(self, domain: str, uris: tuple[str, ...]) -> Signer:
        names = tuple(x509.UniformResourceIdentifier(one) for one in uris)
        return self.roots[domain].issue(Wish(names=names, **self._window))

    def secrets(self) -> dict[str, Any]:
        """A common TLS context with everything in it: no agent is needed."""
        validator = {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
            "SPIFFECertValidatorConfig",
            "trust_domains": [
                {"name": name, "trust_bundle": {"inline_string": pem(root).decode()}}
                for name, root in self.roots.items()
            ],
        }
        return {
            "tls_certificates": [
                {
                    "certificate_chain": {"inline_string": pem(self.server).decode()},
                    "private_key": {"inline_string": key(self.server).decode()},
                }
            ],
            "validation_context": {
                "custom_validator_config": {
                    "name": "envoy.tls.cert_validator.spiffe",
                    "typed_config": validator,
                }
            },
        }


def pem(signer: Signer) -> bytes:
    return signer.certificate.public_bytes(Encoding.PEM)


def key(signer: Signer) -> bytes:
    return signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def bootstrap(questions: list[Question], secrets: dict[str, Any]) -> dict[str, Any]:
    """The listeners of ``sds bootstrap``, with certificates and filters written into them."""
    anywhere = Endpoint(host="127.0.0.1", port=0)
    made = to_dict(
        make_bootstrap(
            node="matrix",
            secrets=SecretSource(socket="/nowhere"),  # type: ignore[arg-type]
            admin=anywhere,
            inbound=[Inbound(listen=anywhere) for _ in questions],
        )
    )
    for question, listener in zip(questions, made["static_resources"]["listeners"], strict=True):
        (chain,) = listener["filter_chains"]
        chain["transport_socket"]["typed_config"]["common_tls_context"] = secrets
        manager = chain["filters"][0]["typed_config"]
        manager["http_filters"].insert(0, served(question))
    made["static_resources"]["clusters"] = []
    return made


def served(question: Question) -> dict[str, Any]:
    """The filter that the agent serves, in JSON."""
    enforced, shadow = rules_for(Decisions(policy(question)), TARGET)
    wanted = Authorization(identity=TARGET, enforced=enforced, shadow=shadow)
    extension = extension_pb2.TypedExtensionConfig.FromString(http_filter("matrix", wanted))
    config: dict[str, Any] = MessageToDict(extension, preserving_proto_field_name=True)
    assert config["typed_config"]["rules"] is not None
    return config


async def answer(
    port: int, context: ssl.SSLContext | None, question: Question, *headers: str
) -> int:
    """The status of the answer; 0 if the connection was refused. No context: plaintext."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    except (ssl.SSLError, ConnectionError):
        return 0
    try:
        more = "".join(f"{one}\r\n" for one in headers)
        writer.write(
            f"{question.method} {question.path} HTTP/1.1\r\nHost: {question.host}\r\n"
            f"{more}"
            "Connection: close\r\n\r\n".encode("latin-1")
        )
        try:
            head = await asyncio.wait_for(reader.read(64), 20)
        except (ssl.SSLError, ConnectionError):
            return 0
        return int(head.split()[1]) if head else 0
    finally:
        writer.close()


async def compare(questions: list[Question], folder: Path, version: str) -> list[str]:
    """Every question on which the two differ; both answers occur often."""
    certificates = Certificates(folder)
    config = bootstrap(questions, certificates.secrets())
    different = []
    allowed = 0
    async with running_envoy(config, folder=folder, version=version) as envoy:
        await envoy.until_live()
        ports = await ports_of(envoy, len(questions))
        for question, port in zip(questions, ports, strict=True):
            status = await answer(port, certificates.clients[question.peer], question)
            assert status in {200, 400, 403}, (status, question)
            expected = explained(question, port)
            allowed += expected
            if expected is not (status == 200):
                different.append(f"Envoy {status}, explain {expected}: {question}")
    assert _CASES // 20 < allowed < _CASES // 2, f"{allowed} of {_CASES} were allowed"
    return different


async def ports_of(envoy: Envoy, count: int) -> list[int]:
    """The port of each listener, in their order."""
    await envoy.address(f"inbound-{count}" if count > 1 else "inbound")
    listed = json.loads(await envoy.get("/listeners?format=json"))["listener_statuses"]
    found = {one["name"]: one["local_address"]["socket_address"]["port_value"] for one in listed}
    return [found["inbound" if not at else f"inbound-{at + 1}"] for at in range(count)]


@pytest.mark.parametrize("seed", [17])
async def test_explain_and_envoy_agree(seed: int, tmp_path: Path) -> None:
    drawing = Drawing(seed)
    questions = [drawing.question() for _ in range(_CASES)]
    different = await compare(questions, tmp_path, NEWEST)
    assert not different, "\n".join(different)


ALL = [{"from": f"{OURS}/**", "to": f"{OURS}/db"}]
PUBLIC = [{**ALL[0], "requests": [{"paths": ["/public/**", "/exact"], "hosts": ["h.org"]}]}]
ATTACKS = [
    "/public/../admin",
    "/public/..;/admin",
    "/public/..%2fadmin",
    "/public/..%5cadmin",
    "/public/%2e%2e/admin",
    "/public/%2e%2e%2fadmin",
    "/public/.%2e/admin",
    "/public/%252e%252e/admin",
    "/public//../../admin",
    "/public\\..\\admin",
    "/public/%00/../admin",
    "//admin",
    "/PUBLIC/x",
    "/public",
    "/exact/",
    "/exact;x",
    "/admin?/public/x",
    "/admin#/public/",
    "/admin%3f/public/x",
]


@pytest.mark.parametrize("version", VERSIONS)
async def test_no_way_around_the_paths_of_a_rule(version: str, tmp_path: Path) -> None:
    def ask(path: str, host: str = "h.org", *, peer: str = "web", allow: Any = PUBLIC) -> Question:
        return Question(allow=allow, enforce=True, peer=peer, method="GET", path=path, host=host)

    good = [
        ask("/public/x"),
        ask("/public/", "H.org:8443"),
        ask("/public//x", "h.org."),
        ask("/exact?admin"),
        ask("/public/x/../y"),
        ask("/a", allow=ALL),
    ]
    bad = [
        *map(ask, ATTACKS),
        ask("/public/x", "h.org.evil.org"),
        ask("/public/x", peer="partner"),
        ask("/public/x", peer="forged"),
        ask("/a", peer="forged", allow=ALL),
    ]
    certificates = Certificates(tmp_path)
    config = bootstrap([*good, *bad], certificates.secrets())
    async with running_envoy(config, folder=tmp_path, version=version) as envoy:
        await envoy.until_live()
        ports = await ports_of(envoy, len(good) + len(bad))
        for question, port in zip([*good, *bad], ports, strict=True):
            status = await answer(port, certificates.clients[question.peer], question)
            assert (status == 200) is (question in good), (status, question)


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
async def test_the_certificate_names_the_peer_and_nothing_else(
    version: str, tmp_path: Path
) -> None:
    web = Question(
        allow=[{"from": f"{OURS}/web", "to": f"{OURS}/db"}],
        enforce=True,
        peer="web",
        method="GET",
        path="/",
        host="h.org",
    )
    certificates = Certificates(tmp_path)
    forged = f"x-forwarded-client-cert: By={TARGET};URI={OURS}/web"
    async with running_envoy(
        bootstrap([web], certificates.secrets()), folder=tmp_path, version=version
    ) as envoy:
        await envoy.until_live()
        (port,) = await ports_of(envoy, 1)
        clients = certificates.clients
        assert await answer(port, clients["web"], web) == 200
        assert await answer(port, clients["web-2"], web) == 403
        assert await answer(port, clients["web-2"], web, forged) == 403
        assert await answer(port, clients["same path"], web) == 403
        assert await answer(port, clients["forged"], web, forged) == 403
        assert await answer(port, clients["upper case"], web) in {0, 403}
        assert await answer(port, clients["no name"], web) in {0, 403}
        nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
        assert await answer(port, nobody, web, forged) == 0
        assert await answer(port, None, web, forged) in {0, 400}
