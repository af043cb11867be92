"""The certificate of a bundle endpoint that proves itself by an X.509-SVID."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509

from sds.federation.endpoint import check_peer
from sds.identity import SpiffeId
from tests.support.certificates import Wish, ca_wish, key_usage, self_signed
from tests.support.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Mapping

SERVER = SpiffeId.parse("spiffe://theirs.test/bundle")
LEAF = Wish(names=(x509.UniformResourceIdentifier(str(SERVER)),))


def certificate(**over: Any) -> bytes:
    return self_signed(ca_wish("theirs")).issue(dataclasses.replace(LEAF, **over)).der


@pytest.mark.parametrize(
    "over", [{}, {"constraints": None}, {"usage": None}, {"extended": ()}], ids=str
)
def test_a_leaf_of_the_configured_name_is_taken(over: Mapping[str, Any]) -> None:
    check_peer(certificate(**over), SERVER)


@pytest.mark.parametrize(
    "over",
    [
        {"constraints": x509.BasicConstraints(ca=True, path_length=None)},
        {"usage": key_usage("digital_signature", "key_cert_sign")},
        {"usage": key_usage("digital_signature", "crl_sign")},
    ],
    ids=["authority", "signs certificates", "signs lists"],
)
def test_an_authority_does_not_prove_who_it_is(over: Mapping[str, Any]) -> None:
    with refused("bundle_unavailable", match="an authority's"):
        check_peer(certificate(**over), SERVER)
