"""The search for keys finds what it is made to find."""

import base64
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from sds.identity import KeyType
from sds.pki import generate_private_key
from tests.support.keys import files_with_keys, found_in


def pem_of(key_type: KeyType) -> bytes:
    key = generate_private_key(key_type)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_2048])
def test_a_key_is_found_in_every_usual_form(key_type: KeyType) -> None:
    pem, other = pem_of(key_type), pem_of(key_type)
    key = load_pem_private_key(pem, None)
    forms = [
        key.private_bytes(encoding, form, NoEncryption())
        for encoding in (Encoding.PEM, Encoding.DER)
        for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL)
    ]
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    forms += [base64.b64encode(pem)[8:], base64.b64encode(b"x" + der), base64.b64encode(der)]
    for form in forms[:4] + forms[5:]:
        assert found_in(b"before" + form + b"after", [pem]), form
        assert not found_in(b"before" + form + b"after", [other])


def test_files_are_searched(tmp_path: Path) -> None:
    pem = pem_of(KeyType.EC_P256)
    began = time.time() - 1
    (tmp_path / "deep").mkdir()
    guilty = tmp_path / "deep" / "log"
    guilty.write_bytes(b"x" * 1000 + pem)
    (tmp_path / "innocent").write_bytes(b"x" * 1000)
    assert files_with_keys(tmp_path, [pem], since=began) == [guilty]
    assert files_with_keys(tmp_path, [pem], since=time.time() + 100) == []
