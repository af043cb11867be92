"""Makes keys, CSRs and certificates, and checks chains.

Invariant: nothing here reads a clock, a file or a socket; time is an argument, and a failed
verification raises a :class:`sds.errors.CertificateError`. Primitives are always the library's
(``cryptography``).
"""

from sds.pki.chain import (
    VerifiedChain,
    load_certificate,
    load_issuer,
    verify_authority_chain,
    verify_svid_chain,
)
from sds.pki.encoding import certificate_der, certificate_pem, certificates_from_pem, plain_pem
from sds.pki.keys import (
    PrivateKey,
    PublicKey,
    csr_public_key,
    generate_private_key,
    key_type_of,
    load_private_key,
    make_csr,
    private_key_pem,
    signature_hash,
    spki_der,
    spki_sha256,
    supported_key,
)
from sds.pki.roots import (
    MAX_BUNDLE_BYTES,
    MAX_ROOTS,
    complete_anchors,
    fit_a_bundle,
    is_self_signed,
    read_root,
)

__all__ = [
    "MAX_BUNDLE_BYTES",
    "MAX_ROOTS",
    "PrivateKey",
    "PublicKey",
    "VerifiedChain",
    "certificate_der",
    "certificate_pem",
    "certificates_from_pem",
    "complete_anchors",
    "csr_public_key",
    "fit_a_bundle",
    "generate_private_key",
    "is_self_signed",
    "key_type_of",
    "load_certificate",
    "load_issuer",
    "load_private_key",
    "make_csr",
    "plain_pem",
    "private_key_pem",
    "read_root",
    "signature_hash",
    "spki_der",
    "spki_sha256",
    "supported_key",
    "verify_authority_chain",
    "verify_svid_chain",
]
