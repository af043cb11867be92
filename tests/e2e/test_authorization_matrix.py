"""``sds policy explain`` and a real Envoy decide the same about policies, peers and requests.

Policies, names and paths are drawn from few that are near to each other. Each policy gets a
listener of one Envoy, whose settings are those of ``sds bootstrap``; each request goes over mTLS,
as bytes that no client library would send.
"""

from __future__ import annotations

import random
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from sds.identity import SpiffeId
from sds.policy.explanation import explain_request
from sds.policy.requests import Request
from tests.support.envoy import NEWEST, VERSIONS, running_envoy
from tests.support.envoy_peers import (
    OURS,
    PARTNER,
    PEERS,
    TARGET,
    Certificates,
    Question,
    answer,
    bootstrap,
    policy,
    ports_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.e2e

_CASES = 300


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


def explained(question: Question, port: int) -> bool:
    """What ``explain`` says; the peer is whom its certificate names first."""
    request = Request(method=question.method, path=question.path, host=question.host, port=port)
    source = SpiffeId.parse(PEERS[question.peer][0])
    return explain_request(policy(question), source, TARGET, request).allowed


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
