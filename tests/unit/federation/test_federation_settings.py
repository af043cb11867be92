from __future__ import annotations

from datetime import timedelta

import pytest

from sds.errors import ConfigurationError
from sds.federation.settings import FederationSettings
from sds.settings.yamlfile import parse, validate


def read(text: str) -> FederationSettings:
    return validate(parse(text.encode(), what="agent.yaml"), FederationSettings, what="agent.yaml")


def test_every_form_of_an_entry() -> None:
    settings = read(
        """
        bundles:
          - {trust_domain: a.test, file: /a.json}
          - {trust_domain: b.test, endpoint: "https://b.test/bundle", refresh: 1m}
          - trust_domain: c.test
            endpoint: https://c.test:8443/
            profile: https_spiffe
            endpoint_spiffe_id: spiffe://c.test/server
            file: /c.pem
        serve: {listen: "127.0.0.1:9080"}
        """
    )
    a, b, c = settings.sources()
    assert a.endpoint is None
    assert b.endpoint is not None
    assert b.endpoint.spiffe_id is None
    assert b.refresh == timedelta(minutes=1)
    assert c.endpoint is not None
    assert str(c.endpoint.spiffe_id) == "spiffe://c.test/server"
    assert settings.serve is not None
    assert settings.serve.refresh_hint == timedelta(minutes=5)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("{trust_domain: a.test}", "give endpoint, file or both"),
        ("{trust_domain: A.test, file: /a}", "trust_domain"),
        ("{trust_domain: a.test, endpoint: 'http://a/'}", "https://host"),
        ("{trust_domain: a.test, endpoint: 'https://a/', profile: https_spiffe}", "needs endpoint"),
        ("{trust_domain: a.test, file: /a, endpoint: 'https://a/'}", "leave file out"),
        ("{trust_domain: a.test, file: /a, endpoint_spiffe_id: 'spiffe://a/b'}", "belongs to"),
        ("{trust_domain: a.test, fil: /a}", "file"),
    ],
)
def test_what_contradicts_itself_is_refused(entry: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        read(f"bundles: [{entry}]")
