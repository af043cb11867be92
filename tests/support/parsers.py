"""Every parser of data from outside, in one list that a test holds complete.

Each room adds its parsers to :data:`PARSERS` and its package to :data:`ROOMS`. A public function
whose first argument is ``bytes`` is a parser, unless :data:`NOT_PARSERS` says why it is none.
``tests/property/test_parsers.py`` holds for each that only our errors come out, and that its cost
is in proportion to its input.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from sds._proto.istio.v1.auth.ca_pb2 import IstioCertificateResponse
from sds._proto.sds.ca.v1 import ca_pb2
from sds.agent.config import AgentConfig
from sds.attestation import other_formats, pem, recognise, revocation
from sds.attestation.azure import runtime as azure_runtime
from sds.attestation.csr import make_attested_csr, parse_attested_csr
from sds.attestation.kubernetes.token import JwksKeys
from sds.attestation.snp.certificate import Certificate, split_signed
from sds.attestation.snp.certificate_table import (
    ARK,
    ASK,
    VCEK,
    chain_of_host,
    parse_certificate_table,
)
from sds.attestation.snp.chain import amd_certificates
from sds.attestation.snp.kind import is_amd_root
from sds.attestation.snp.leaf import read_leaf
from sds.attestation.snp.report import Report
from sds.attestation.snp.revocation import read_amd_list
from sds.attestation.snp.simulated import SimulatedMachine
from sds.attestation.tdx.chain import PCK_CHAIN, link_chain, root_digest
from sds.attestation.tdx.collateral import signed_document
from sds.attestation.tdx.quote import parse_quote
from sds.attestation.tdx.revocation import read_intel_list
from sds.attestation.tdx.tcb import (
    SignedDocument,
    read_enclave_identity,
    read_recoveries,
    read_tcb_info,
)
from sds.attestation.tpm import attest as tpm_attest
from sds.attestation.tpm import challenge as tpm_challenge
from sds.attestation.tpm import commands as tpm_commands
from sds.attestation.tpm import endorsement as tpm_endorsement
from sds.attestation.tpm import keys as tpm_keys
from sds.attestation.tpm import parcel as tpm_parcel
from sds.authority import istio_answer
from sds.authority.istio import bearer_token
from sds.authority.istio_token import bearer_problem
from sds.errors import SdsError
from sds.exchange import wire
from sds.exchange.message_bounds import check_shape
from sds.identity import Identity, KeyType, SpiffeId
from sds.pki import certificate_pem, certificates_from_pem, chain, der, keys, plain_pem, roots
from sds.pki.pem import der_blocks, pem_blocks
from sds.policy import succession, yaml_document
from sds.policy.envelope import SignedPolicy, parse_envelope
from sds.policy.istio.conversion import convert
from sds.policy.istio.manifests import parse_manifests
from sds.policy.trust import authenticate
from sds.settings import yamlfile
from sds.subordinate_ids import delegated_ranges
from tests.support import made_quotes, policies
from tests.support.certificate_table import build_certificate_table
from tests.support.certificates import Wish, ca_wish, self_signed
from tests.support.intel import Intel, qe_identity, tcb_info
from tests.support.machines import crl, simulated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

NOW = datetime(2026, 6, 1, tzinfo=UTC)
KEY = ec.generate_private_key(ec.SECP256R1()).public_key()

ROOMS: Final = (
    "sds/attestation",
    "sds/authority",
    "sds/ca",
    "sds/exchange",
    "sds/pki",
    "sds/policy",
)
"""Packages whose parsers are all in the list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parser:
    """A parser of data from outside.

    Attributes:
        name: ``package.module:function``, or ``package.module:Class.method``.
        parse: calls it.
        samples: makes inputs that it accepts, or nearly: tests change them.
        errors: what may come out.
        shapes: makes inputs of a size, by name, beside those that every parser gets.
    """

    name: str
    parse: Callable[[bytes], object]
    samples: Callable[[], Sequence[bytes]] = field(default=lambda: ())
    errors: tuple[type[Exception], ...] = (SdsError,)
    shapes: Mapping[str, Callable[[int], bytes]] = field(default_factory=dict, compare=False)


NOT_PARSERS: Final = {
    "sds.attestation.evidence:report_data": "hashes what we made",
    "sds.authority.session:Session.accepted": "keeps a nonce, whose length usable checks",
    "sds.attestation.other_formats:is_sgx_quote": "looks at eight bytes of a header",
    "sds.attestation.other_formats:is_snp_report": "looks at three numbers of a header",
    "sds.attestation.other_formats:is_td_report": "looks at two bytes of a header",
    "sds.attestation.other_formats:describe_td_report": "cuts what parse_hcl laid out",
    "sds.attestation.other_formats:describe_sgx_quote": "cuts what is_sgx_quote measured",
    "sds.attestation.azure.metadata:MetadataService.td_quote": "sends what it takes",
    "sds.attestation.evidence:ChallengedAttester.answer_challenge": "a port",
    "sds.attestation.exchange_key.events:key_digest": "hashes",
    "sds.attestation.exchange_key.events:key_event": "hashes",
    "sds.attestation.exchange_key.events:signed_text": "writes",
    "sds.attestation.exchange_key.holding:HeldKey.proof": "signs what we made",
    "sds.attestation.exchange_key.holding:KeyedAttester.answer_challenge": "gives it on",
    "sds.attestation.exchange_key.holding:Register.extend": "a port",
    "sds.attestation.exchange_key.register:MeasurementRegister.extend": "writes a digest of ours",
    "sds.attestation.snp.sources:fits_report": "gives it to read_leaf",
    "sds.attestation.snp.sources:issuers_of": "gives it to Certificate.parse",
    "sds.attestation.snp.sources:hold_together": "gives it to Certificate.parse",
    "sds.attestation.tpm.endorsement:issuers_above": "gives it to load_certificate",
    "sds.attestation.tpm.attester:TpmAttester.answer_challenge": "gives it to split_credential",
    "sds.attestation.tpm.register:PcrRegister.extend": "sends a digest of ours",
    "sds.attestation.snp.simulated:SimulatedMachine.evidence": "makes a report",
    "sds.attestation.snp.simulated:SimulatedMachine.report": "makes a report",
    "sds.attestation.snp.simulated:SimulatedMachine.body": "makes a report",
    "sds.attestation.snp.simulated:SimulatedMachine.sign": "makes a signature",
    "sds.attestation.tdx.tcb:same_under_mask": "compares bits",
    "sds.attestation.azure.runtime:report_data_of": "hashes",
    "sds.attestation.tpm.device:TpmTransport.transmit": "carries bytes that Tpm.execute looks at",
    "sds.attestation.tpm.device:_File.transmit": "carries bytes that Tpm.execute looks at",
    "sds.attestation.tpm.device:_Socket.transmit": "cuts at the size that the header says",
    "sds.attestation.tpm.challenge:proves": "compares 32 bytes",
    "sds.attestation.tpm.wire:sized": "writes",
    "sds.authority.policy_peer:NoPolicy.offer": "takes nothing",
    "sds.authority.policy_peer:PolicyPeer.offer": "a port; sds.policy parses",
    "sds.ca.signers:SigningState.known_since": "looks a root up",
    "sds.ca.own_evidence:Prover.prove": "binds a nonce that was checked",
    "sds.pki.der:from_octets": "writes",
    "sds.policy.envelope:PolicySigner.sign": "signs what we made",
    "sds.policy.envelope:new_envelope": "writes",
    "sds.policy.holder:PolicyHolder.offer": "gives it to succession.split",
    "sds.policy.holder:PolicyHolder.take": "gives it to succession.split",
    "sds.policy.holder:PolicyHolder.take_from_stranger": "gives it to succession.split",
    "sds.policy.examination:examine": "gives it to parse_envelope and parse_payload",
    "sds.policy.trust:make_policy": "takes what was parsed",
    "sds.policy.signers:CommandSigner.sign": "signs what we made",
    "sds.policy.signers:TokenSigner.sign": "signs what we made",
    "sds.pki.der:from_whole_bytes": "writes",
}
"""Functions that take bytes first and parse nothing from outside, and why."""


@functools.cache
def _intel() -> Intel:
    return Intel()


def _attested_csr() -> Sequence[bytes]:
    key = keys.generate_private_key(KeyType.EC_P256)
    identity = Identity(
        spiffe_id=SpiffeId.parse("spiffe://example.org/a"), key_type=KeyType.EC_P256
    )
    evidence = simulated().machine().evidence(bytes(64))
    return (make_attested_csr(key, identity, evidence), keys.make_csr(key, identity))


def _pem() -> Sequence[bytes]:
    return (certificate_pem([simulated().ark_der]),)


def _lists() -> Sequence[bytes]:
    intel = _intel()
    return (crl(simulated(), 7), intel.crl(intel.ca, intel.ca_key, 5, 6))


def _documents() -> Sequence[bytes]:
    tail = b',"signature":"' + b"00" * 64 + b'"}'
    return (
        b'{"tcbInfo":' + json.dumps(tcb_info()).encode() + tail,
        b'{"enclaveIdentity":' + json.dumps(qe_identity()).encode() + tail,
    )


def _recoveries() -> Sequence[bytes]:
    body = json.loads(_intel().recoveries(16, 17, 18))["tcbEvaluationDataNumbers"]
    return (json.dumps(body).encode(),)


def _document(raw: bytes) -> SignedDocument:
    """Any JSON object, as a document whose signature held."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        found = None
    return SignedDocument(found if isinstance(found, dict) else {})


def _quotes() -> Sequence[bytes]:
    intel = _intel()
    return (intel.quote(), intel.quote(version=5), intel.quote(version=5, body_type=4))


def _hcl() -> Sequence[bytes]:
    runtime = b'{"keys":[]}'
    sizes = b"".join(
        number.to_bytes(4, "little") for number in (20 + len(runtime), 1, 2, 1, len(runtime))
    )
    return (b"HCLA" + bytes(28) + simulated().machine().report(bytes(64)) + sizes + runtime,)


def _token(raw: bytes) -> object:
    made = JwksKeys()
    made.replace(raw)
    return made


def _elements() -> Sequence[bytes]:
    return (simulated().ark_der, der.from_integer(7), der.from_object_identifier("1.2.3"))


def _low(name: str, parse: Callable[[bytes], object]) -> Parser:
    return Parser(name=f"sds.pki.der:{name}", parse=parse, samples=_elements, errors=(ValueError,))


def _messages() -> Sequence[bytes]:
    item = ca_pb2.Item(csr=b"c" * 40, spiffe_id="spiffe://example.org/web", dns_names=["a", "b"])
    evidence = ca_pb2.Evidence(kind="sev-snp", report=b"r" * 40, certificates=[b"c"] * 3)
    request = ca_pb2.CertificateRequest(nonce=bytes(32), items=[item] * 3, evidence=evidence)
    challenge = ca_pb2.Challenge(
        nonce=bytes(32), evidence=evidence, roots=[b"r"], covered_nonces=[bytes(32)] * 3
    )
    result = ca_pb2.ItemResult(certificate=ca_pb2.Certificate(leaf=b"l" * 40))
    return [
        ca_pb2.ExchangeRequest(hello=ca_pb2.Hello(nonce=bytes(32))).SerializeToString(),
        ca_pb2.ExchangeRequest(certificates=request).SerializeToString(),
        ca_pb2.ExchangeResponse(challenge=challenge).SerializeToString(),
        ca_pb2.ExchangeResponse(
            certificates=ca_pb2.CertificateResponse(results=[result] * 3)
        ).SerializeToString(),
    ]


def _istio(raw: bytes) -> object:
    """Elements of ``cert_chain``, each after a NUL."""
    return istio_answer.parse(tuple(raw.decode("utf-8", "surrogateescape").split("\0")))


def _istio_answers() -> Sequence[bytes]:
    root = self_signed(ca_wish("root"))
    between = root.issue(ca_wish("between"))
    chain = [between.issue(Wish()), between, root]
    return [b"\0".join(certificate_pem([one.der]) for one in chain)]


def _bearer(raw: bytes) -> object:
    return bearer_problem(raw.decode("utf-8", "surrogateescape"), audience="istio-ca", now=NOW)


def _policies() -> Sequence[bytes]:
    signed = policies.sign(policies.document(2, allow=[_ALLOW]), policies.Signatory("a"))
    return (bytes(signed), policies.yaml_bytes(policies.document(3, allow=[_ALLOW])))


_ALLOW: Final = {
    "from": "spiffe://example.org/a",
    "to": "spiffe://example.org/**",
    "requests": [{"methods": ["GET"], "paths": ["/a/*/b"], "hosts": ["*.org"], "ports": [1]}],
}
_TRUSTED: Final = policies.trusting(policies.Signatory("a"))


def _manifests() -> Sequence[bytes]:
    rule = {"from": [{"source": {"principals": ["*"]}}], "to": [{"operation": {"paths": ["/a*"]}}]}
    spec = {"action": "DENY", "selector": {"matchLabels": {"a": "b"}}, "rules": [rule]}
    policy = {"kind": "AuthorizationPolicy", "metadata": {"name": "p"}, "spec": spec}
    return (policies.yaml_bytes({"kind": "List", "items": [policy]}), policies.yaml_bytes(policy))


def _numbered(form: str, *, end: str = "") -> Callable[[int], bytes]:
    """The form again and again, each time with another number."""

    def make(size: int) -> bytes:
        one = len(form.replace("{0}", "99999"))
        return ("".join(form.format(n) for n in range(size // one)) + end).encode()

    return make


def _aliases(size: int) -> bytes:
    """Eight aliases of what has eight aliases, and so on; then many of one in the middle."""
    levels = [f"a{n}: &a{n} [" + f"*a{n - 1}, " * 8 + "]\n" for n in range(1, 12)]
    return (
        "a0: &a0 [x, x, x, x, x, x, x, x]\n"
        + "".join(levels)
        + "z: ["
        + "*a1, " * (size // 5)
        + "]\n"
    ).encode()


YAML: Final[dict[str, Callable[[int], bytes]]] = {
    "tag directives": _numbered("%TAG !a{0}! x\n", end="--- a\n"),
    "tag directives after a carriage return": _numbered("%TAG !a{0}! x\r", end="--- a\n"),
    "anchors": _numbered("- &a{0} x\n- *a{0}\n"),
    "aliases of aliases": _aliases,
    "keys": _numbered("k{0}: 1\n"),
    "fields of manifests": _numbered("f{0}: {{}}\n", end="kind: List\nitems: []\n"),
    "merge keys": _numbered("c{0}: {{<<: *a}}\n"),
    "a long key": lambda size: b"a" * size + b": 1",
    "a long scalar": lambda size: b'a: "' + b"\\x41" * (size // 4) + b'"',
    "flow mappings inside one another": lambda size: b"{a: " * (size // 4),
    "block sequences inside one another": lambda size: b"- " * (size // 2),
    "complex keys": lambda size: b"? " * (size // 2),
    "documents": lambda size: b"---\na: 1\n" * (size // 9),
    "comments": lambda size: b"# x\n" * (size // 4),
    "a flat list": lambda size: b"a: [" + b"1," * (size // 2) + b"]",
}


def _configuration(raw: bytes) -> object:
    return yamlfile.validate(yamlfile.parse(raw, what="x"), AgentConfig, what="x")


def _configurations() -> Sequence[bytes]:
    workload = {"name": "a", "spiffe_id": "spiffe://example.org/a", "match": {"unix:uid": "1"}}
    return (
        policies.yaml_bytes(
            {
                "trust_domain": "example.org",
                "authority": {"addresses": ["127.0.0.1:1"]},
                "workloads": [workload],
                "node": {"attestors": ["unix"]},
            }
        ),
    )


def _converted(raw: bytes) -> object:
    return convert(parse_manifests(raw, file="x"), trust_domain=policies.DOMAIN)


PARSERS: Final[list[Parser]] = [
    Parser(name="sds.policy.succession:split", parse=succession.split, samples=_policies),
    Parser(
        name="sds.policy.envelope:parse_envelope",
        parse=lambda raw: parse_envelope(SignedPolicy(raw)),
        samples=_policies,
    ),
    Parser(
        name="sds.policy.trust:authenticate",
        parse=lambda raw: authenticate(
            SignedPolicy(raw), trusted=_TRUSTED, trust_domain=policies.DOMAIN
        ),
        samples=_policies,
    ),
    Parser(
        name="sds.policy.yaml_document:parse_payload",
        parse=yaml_document.parse_payload,
        samples=_policies,
        shapes=YAML,
    ),
    Parser(
        name="sds.policy.yaml_document:parse_source",
        parse=lambda raw: yaml_document.parse_source(raw, what="x"),
        samples=_policies,
        shapes=YAML,
    ),
    Parser(
        name="sds.policy.istio.manifests:parse_manifests",
        parse=_converted,
        samples=_manifests,
        shapes=YAML,
    ),
    Parser(
        name="yamlfile:parse and validate, the agent's configuration",
        parse=_configuration,
        samples=_configurations,
        shapes={name: YAML[name] for name in ("keys", "aliases of aliases")},
    ),
    Parser(name="sds.exchange.message_bounds:check_shape", parse=check_shape, samples=_messages),
    Parser(name="sds.exchange.wire:parse_request", parse=wire.parse_request, samples=_messages),
    Parser(name="sds.exchange.wire:parse_response", parse=wire.parse_response, samples=_messages),
    Parser(
        name="sds.exchange.wire:nonce_from_wire",
        parse=wire.nonce_from_wire,
        samples=lambda: (bytes(32),),
    ),
    Parser(
        name="sds.authority.istio:bearer_token",
        parse=lambda raw: bearer_token(raw, Path("token")),
        samples=lambda: (b"a.b.c\n",),
    ),
    Parser(
        name="sds.authority.istio_answer:elements",
        parse=istio_answer.elements,
        samples=lambda: (IstioCertificateResponse(cert_chain=["a", "b"]).SerializeToString(),),
    ),
    Parser(name="istio_answer:parse, of text", parse=_istio, samples=_istio_answers),
    Parser(
        name="istio_token:bearer_problem, of text",
        parse=_bearer,
        samples=lambda: (jwt.encode({"aud": ["istio-ca"]}, "k" * 32).encode(),),
    ),
    Parser(
        name="sds.attestation.csr:parse_attested_csr",
        parse=parse_attested_csr,
        samples=_attested_csr,
    ),
    Parser(
        name="sds.attestation.other_formats:parse_hcl", parse=other_formats.parse_hcl, samples=_hcl
    ),
    Parser(
        name="sds.attestation.other_formats:from_text",
        parse=other_formats.from_text,
        samples=lambda: (b"MDA=", b'"_-8"\n', b"30 30\n"),
    ),
    Parser(
        name="sds.attestation.other_formats:snp_report_within",
        parse=other_formats.snp_report_within,
        samples=lambda: (simulated().machine().report(bytes(64)),),
    ),
    Parser(
        name="sds.attestation.pem:unhexed",
        parse=pem.unhexed,
        samples=lambda: (b"3082\n\0",),
    ),
    Parser(name="sds.attestation.recognise:kind_of", parse=recognise.kind_of, samples=_quotes),
    Parser(
        name="sds.attestation.recognise:describe",
        parse=recognise.describe,
        samples=lambda: (*_quotes(), *_hcl(), simulated().machine().report(bytes(64))),
    ),
    Parser(
        name="sds.attestation.kubernetes.token:JwksKeys.replace",
        parse=_token,
        samples=lambda: (
            b'{"keys":[{"kty":"RSA","kid":"a","alg":"RS256","n":"AQAB","e":"AQAB"}]}',
        ),
    ),
    Parser(
        name="sds.subordinate_ids:delegated_ranges",
        parse=delegated_ranges,
        samples=lambda: (b"alice:100000:65536\n1002:165536:65536\n",),
    ),
    Parser(
        name="sds.attestation.pem:der_certificates",
        parse=lambda raw: pem.der_certificates(raw, what="x"),
        samples=_pem,
    ),
    Parser(
        name="sds.attestation.pem:der_revocation_lists",
        parse=lambda raw: pem.der_revocation_lists(raw, what="x"),
        samples=_pem,
    ),
    Parser(
        name="sds.attestation.revocation:read_revocation_list",
        parse=revocation.read_revocation_list,
        samples=_lists,
    ),
    Parser(
        name="sds.attestation.snp.certificate:Certificate.parse",
        parse=Certificate.parse,
        samples=lambda: simulated().machine().certificates,
    ),
    Parser(
        name="sds.attestation.snp.certificate:split_signed",
        parse=split_signed,
        samples=lambda: simulated().machine().certificates,
        errors=(ValueError,),
    ),
    Parser(
        name="sds.attestation.snp.certificate_table:chain_of_host",
        parse=lambda data: chain_of_host(data, vlek=False),
        samples=lambda: (
            build_certificate_table(
                dict(zip((VCEK, ASK, ARK), simulated().machine().certificates, strict=True))
            ),
        ),
        errors=(),
    ),
    Parser(
        name="sds.attestation.snp.certificate_table:parse_certificate_table",
        parse=parse_certificate_table,
        samples=lambda: (bytes(16) + b"\1" * 16 + b"\x30\0\0\0\4\0\0\0" + bytes(24),),
    ),
    Parser(
        name="sds.attestation.snp.kind:is_amd_root",
        parse=is_amd_root,
        samples=lambda: (simulated().ark_der,),
    ),
    Parser(
        name="sds.attestation.snp.leaf:read_leaf",
        parse=read_leaf,
        samples=lambda: (simulated().machine().certificates[0],),
    ),
    Parser(
        name="sds.attestation.snp.report:Report.parse",
        parse=Report.parse,
        samples=lambda: (simulated().machine().report(bytes(64)),),
    ),
    Parser(
        name="sds.attestation.snp.revocation:read_amd_list",
        parse=lambda raw: read_amd_list(raw, issuers=amd_certificates()),
        samples=_lists,
    ),
    Parser(
        name="sds.attestation.snp.simulated:SimulatedMachine.from_bytes",
        parse=SimulatedMachine.from_bytes,
        samples=lambda: (simulated().machine().to_bytes(),),
    ),
    Parser(
        name="sds.attestation.tdx.chain:link_chain",
        parse=lambda raw: link_chain(raw, names=PCK_CHAIN, trusted=(), what="x"),
        samples=lambda: (parse_quote(_intel().quote()).pck_chain,),
    ),
    Parser(
        name="sds.attestation.tdx.revocation:read_intel_list",
        parse=lambda raw: read_intel_list(raw, roots=[_intel().root_der]),
        samples=_lists,
    ),
    Parser(
        name="sds.attestation.tdx.chain:root_digest",
        parse=root_digest,
        samples=lambda: (_intel().root_der,),
    ),
    Parser(
        name="sds.attestation.tdx.collateral:signed_document",
        parse=lambda raw: signed_document(raw, key=KEY, expected="tcbInfo", now=NOW),
        samples=_documents,
    ),
    Parser(
        name="sds.attestation.tdx.quote:parse_quote",
        parse=parse_quote,
        samples=_quotes,
    ),
    Parser(
        name="sds.attestation.tdx.tcb:read_tcb_info",
        parse=lambda raw: read_tcb_info(_document(raw)),
        samples=lambda: (json.dumps(tcb_info()).encode(),),
    ),
    Parser(
        name="sds.attestation.tdx.tcb:read_enclave_identity",
        parse=lambda raw: read_enclave_identity(_document(raw)),
        samples=lambda: (json.dumps(qe_identity()).encode(),),
    ),
    Parser(
        name="sds.attestation.tdx.tcb:read_recoveries",
        parse=lambda raw: read_recoveries(_document(raw)),
        samples=_recoveries,
    ),
    Parser(
        name="sds.attestation.tpm.attest:parse_attest",
        parse=tpm_attest.parse_attest,
        samples=lambda: (made_quotes.attest(),),
    ),
    Parser(
        name="sds.attestation.tpm.parcel:unpack",
        parse=tpm_parcel.unpack,
        samples=lambda: (tpm_parcel.pack(dict.fromkeys(tpm_parcel.Piece, b"content")),),
    ),
    Parser(
        name="sds.attestation.tpm.challenge:split_credential",
        parse=tpm_challenge.split_credential,
        samples=lambda: (b"\0\1a\0\1b",),
    ),
    Parser(
        name="sds.attestation.tpm.endorsement:endorsement_key",
        parse=tpm_endorsement.endorsement_key,
        samples=lambda: (_intel().root_der,),
    ),
    Parser(
        name="sds.attestation.tpm.attest:describe_attest",
        parse=tpm_attest.describe_attest,
        samples=lambda: (made_quotes.attest(),),
    ),
    Parser(
        name="sds.attestation.azure.runtime:parse_runtime",
        parse=azure_runtime.parse_runtime,
        samples=lambda: (b'{"keys":[{"kid":"HCLAkPub","kty":"RSA","e":"AQAB","n":"AQAB"}]}',),
    ),
    Parser(
        name="sds.attestation.tpm.keys:parse_public",
        parse=tpm_keys.parse_public,
        samples=lambda: (
            made_quotes.public(),
            tpm_commands.EK_RSA_TEMPLATE,
            tpm_commands.EK_ECC_TEMPLATE,
        ),
    ),
    Parser(
        name="sds.attestation.tpm.keys:parse_signature",
        parse=tpm_keys.parse_signature,
        samples=lambda: (
            made_quotes.rsa_signature(bytes(256)),
            made_quotes.key().sign(b"x"),
        ),
    ),
    Parser(
        name="sds.pki.chain:load_certificate",
        parse=chain.load_certificate,
        samples=lambda: (_intel().root_der, simulated().ark_der),
    ),
    Parser(
        name="sds.pki.chain:load_issuer",
        parse=lambda raw: chain.load_issuer(raw, "a test"),
        samples=lambda: (_intel().root_der, simulated().ark_der),
    ),
    _low("all_elements", der.all_elements),
    _low("content_of", lambda raw: der.content_of(raw, der.SEQUENCE)),
    _low("elements", der.elements),
    _low("integer", der.integer),
    _low("object_identifier", der.object_identifier),
    _low("ia5_string", der.ia5_string),
    _low("whole_bytes", der.whole_bytes),
    _low("moment", der.moment),
    Parser(
        name="sds.pki.encoding:certificates_from_pem",
        parse=certificates_from_pem,
        samples=_pem,
    ),
    Parser(
        name="sds.pki.encoding:plain_pem",
        parse=lambda raw: plain_pem(raw, what="a file"),
        samples=_pem,
    ),
    Parser(name="sds.pki.keys:csr_public_key", parse=keys.csr_public_key, samples=_attested_csr),
    Parser(
        name="sds.pki.keys:load_private_key",
        parse=keys.load_private_key,
        samples=lambda: (keys.private_key_pem(keys.generate_private_key(KeyType.EC_P256)),),
    ),
    Parser(
        name="sds.pki.pem:pem_blocks",
        parse=lambda raw: pem_blocks(raw, label="CERTIFICATE"),
        samples=_pem,
    ),
    Parser(
        name="sds.pki.pem:der_blocks",
        parse=lambda raw: der_blocks(raw, label="CERTIFICATE", what="x"),
        samples=_pem,
    ),
    Parser(
        name="sds.pki.roots:read_root",
        parse=roots.read_root,
        samples=lambda: (_intel().root_der,),
    ),
]
