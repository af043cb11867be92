"""Peers of an Envoy, by certificates of two trust domains, and requests as bytes of ours."""

from __future__ import annotations

import asyncio
import copy
import json
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from envoy.config.core.v3 import extension_pb2
from google.protobuf.json_format import MessageToDict

from sds.bootstrap.build import make_bootstrap
from sds.bootstrap.commented_yaml import to_dict
from sds.bootstrap.plan import Endpoint, Inbound, SecretSource
from sds.identity import SpiffeId
from sds.policy.authorization import rules_for
from sds.policy.authorized import Authorization
from sds.policy.decision import Decisions
from sds.policy.document import PolicyDocument
from sds.serving.rbac import http_filter
from sds.settings import yamlfile
from tests.support.certificates import Signer, Wish, ca_wish, self_signed
from tests.support.policies import document

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.envoy import Envoy

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


class Question(NamedTuple):
    """One policy, and one request of one peer."""

    allow: list[dict[str, Any]]
    enforce: bool
    peer: str
    method: str
    path: str
    host: str


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


def policy(question: Question) -> PolicyDocument:
    fields = document(allow=question.allow, requests_enforce=question.enforce)
    return yamlfile.validate(fields, PolicyDocument, what="drawn")


def bootstrap(questions: list[Question], secrets: dict[str, Any]) -> dict[str, Any]:
    """The listeners of ``sds bootstrap``, with certificates and filters written into them."""
    anywhere = Endpoint(host="127.0.0.1", port=0)
    made = to_dict(
        make_bootstrap(
            node="matrix",
            secrets=SecretSource(socket="/nowhere"),  # type: ignore[arg-type]
            admin=anywhere,
            inbound=[Inbound(listen=anywhere)],
        )
    )
    (only,) = made["static_resources"]["listeners"]  # rendering hundreds takes half a minute
    (chain,) = only["filter_chains"]
    chain["transport_socket"]["typed_config"]["common_tls_context"] = secrets
    listeners = [copy.deepcopy(only) for _ in questions]
    for number, (question, listener) in enumerate(zip(questions, listeners, strict=True), 1):
        listener["name"] = "inbound" if number == 1 else f"inbound-{number}"
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        manager["http_filters"].insert(0, served(question))
    made["static_resources"] |= {"listeners": listeners, "clusters": []}
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


async def ports_of(envoy: Envoy, count: int) -> list[int]:
    """The port of each listener, in their order."""
    await envoy.address(f"inbound-{count}" if count > 1 else "inbound")
    listed = json.loads(await envoy.get("/listeners?format=json"))["listener_statuses"]
    found = {one["name"]: one["local_address"]["socket_address"]["port_value"] for one in listed}
    return [found["inbound" if not at else f"inbound-{at + 1}"] for at in range(count)]
