"""Istio's policies as a policy document: the examples of Istio's own task pages, and the rest.

Each example gives either the right answers to requests, or a finding that says why not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml
from click.testing import CliRunner

from sds import cli
from sds.errors import ConfigurationError
from sds.identity import SpiffeId, parse_trust_domain
from sds.policy.decision import Decisions
from sds.policy.document import PolicyDocument
from sds.policy.istio.conversion import Conversion, convert
from sds.policy.istio.manifests import read_manifests
from sds.policy.normal_path import normalized_path
from sds.policy.requests import Request
from sds.settings import yamlfile
from tests.support.policies import document

if TYPE_CHECKING:
    from pathlib import Path

DOMAIN = parse_trust_domain("cluster.local")
WORKLOADS = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: httpbin, namespace: foo}
spec:
  template:
    metadata: {labels: {app: httpbin, version: v1}}
    spec: {serviceAccountName: httpbin}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: tcp-echo, namespace: foo}
spec:
  template:
    metadata: {labels: {app: tcp-echo}}
    spec: {serviceAccountName: tcp-echo}
---
apiVersion: v1
kind: Service
metadata: {name: httpbin, namespace: foo}
"""


def sid(namespace: str, account: str) -> SpiffeId:
    return SpiffeId.parse(f"spiffe://cluster.local/ns/{namespace}/sa/{account}")


CURL, SLEEP, OTHER = sid("foo", "curl"), sid("bar", "sleep"), sid("other", "x")
HTTPBIN, ECHO = sid("foo", "httpbin"), sid("foo", "tcp-echo")


class Imported:
    """The outcome for some manifests, ready to be asked."""

    def __init__(self, folder: Path, *manifests: str, workloads: str = WORKLOADS) -> None:
        file = folder / "mesh.yaml"
        file.write_text("\n---\n".join([*manifests, workloads]))
        self.found: Conversion = convert(read_manifests([file]), trust_domain=DOMAIN)
        fields = {**document(allow=self.found.allow), "trust_domain": DOMAIN}
        self.decisions = Decisions(yamlfile.validate(fields, PolicyDocument, what="made"))

    def may(self, who: SpiffeId, whom: SpiffeId = HTTPBIN, **request: Any) -> bool:
        path = normalized_path(request.pop("path", "/"))
        return self.decisions.may_request(who, whom, Request(path=path, **request))

    @property
    def narrower(self) -> list[str]:
        return [finding.text for finding in self.found.findings if finding.narrows]

    @property
    def notes(self) -> list[str]:
        return [finding.text for finding in self.found.findings if not finding.narrows]


def policy(spec: str, name: str = "p", namespace: str = "foo") -> str:
    parsed = yaml.safe_load(spec) or {}
    return yaml.safe_dump(
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": name, "namespace": namespace},
            "spec": parsed,
        }
    )


SELECT = "selector: {matchLabels: {app: httpbin}}\n"


def test_http_task(tmp_path: Path) -> None:
    """Security, authorization, HTTP traffic: allow nothing, then GET by one account."""
    nothing = policy("{}", "allow-nothing")
    assert not Imported(tmp_path, nothing).may(CURL, method="GET")
    one = policy(
        SELECT + "action: ALLOW\n"
        "rules:\n"
        "- from: [{source: {principals: ['cluster.local/ns/foo/sa/curl']}}]\n"
        "  to: [{operation: {methods: [GET, POST]}}]\n"
    )
    mesh = Imported(tmp_path, nothing, one)
    assert mesh.narrower == []
    assert mesh.may(CURL, method="GET", path="/any/path")
    assert mesh.may(CURL, method="POST")
    assert not mesh.may(CURL, method="PUT")
    assert not mesh.may(SLEEP, method="GET")
    assert not mesh.may(CURL, ECHO)


def test_tcp_task(tmp_path: Path) -> None:
    """Security, authorization, TCP traffic: ports; an HTTP field never matches TCP."""
    select = "selector: {matchLabels: {app: tcp-echo}}\naction: ALLOW\n"
    ports = policy(select + "rules: [{to: [{operation: {ports: ['9000', '9001']}}]}]")
    mesh = Imported(tmp_path, ports)
    assert mesh.narrower == []
    assert mesh.may(CURL, ECHO, port=9000)
    assert not mesh.may(CURL, ECHO, port=9002)
    http = policy(select + "rules: [{to: [{operation: {methods: [GET], ports: ['9000']}}]}]")
    (rule,) = [one for one in Imported(tmp_path, http).found.allow if ECHO.path in one["to"][0]]
    assert rule["requests"] == [{"methods": ["GET"], "ports": [9000]}]
    deny = policy(
        "selector: {matchLabels: {app: tcp-echo}}\naction: DENY\n"
        "rules: [{to: [{operation: {ports: ['9000']}}]}]",
        "deny",
    )
    mesh = Imported(tmp_path, ports, deny)
    assert not mesh.may(CURL, ECHO, port=9000)
    assert mesh.may(CURL, ECHO, port=9001)


def test_deny_task(tmp_path: Path) -> None:
    """Security, authorization, explicit deny: by method, by header, then ALLOW by path."""
    deny = policy(SELECT + "action: DENY\nrules: [{to: [{operation: {methods: [GET]}}]}]")
    mesh = Imported(tmp_path, deny)
    assert not mesh.may(CURL, method="GET", path="/get")
    assert mesh.may(CURL, method="POST")
    assert mesh.may(CURL, ECHO)
    header = policy(
        SELECT + "action: DENY\nrules:\n- to: [{operation: {methods: [GET]}}]\n"
        "  when: [{key: 'request.headers[x-token]', notValues: [admin]}]"
    )
    mesh = Imported(tmp_path, header)
    assert not mesh.may(CURL, method="GET")
    assert mesh.may(CURL, method="POST")
    (told,) = mesh.narrower
    assert "rules do not know headers" in told
    assert "more is denied" in told
    ip = policy(SELECT + "action: ALLOW\nrules: [{to: [{operation: {paths: ['/ip']}}]}]", "ip")
    mesh = Imported(tmp_path, header, ip)
    assert mesh.may(CURL, method="POST", path="/ip")
    assert not mesh.may(CURL, method="GET", path="/ip")
    assert not mesh.may(CURL, method="POST", path="/get")


def test_jwt_task(tmp_path: Path) -> None:
    """Security, authorization, JWT: no words for it, so nothing is allowed by it."""
    jwt = policy(
        SELECT + "action: ALLOW\nrules:\n"
        "- from: [{source: {requestPrincipals: ['testing@secure.istio.io/*']}}]\n"
        "- when: [{key: 'request.auth.claims[groups]', values: [group1]}]"
    )
    request = "kind: RequestAuthentication\nmetadata: {name: jwt, namespace: foo}\nspec: {}\n"
    mesh = Imported(tmp_path, jwt, request)
    assert not mesh.may(CURL)
    assert len(mesh.narrower) == 2
    assert all("JWT" in text and "the rule is left out" in text for text in mesh.narrower)
    assert mesh.notes == ["RequestAuthentication foo/jwt is not converted"]


def test_ingress_task(tmp_path: Path) -> None:
    """Security, authorization, ingress gateway: addresses and JWTs have no words."""
    for rule in (
        "from: [{source: {ipBlocks: ['1.2.3.4']}}]",
        "from: [{source: {remoteIpBlocks: ['1.2.3.4']}}]",
        "when: [{key: remote.ip, values: ['1.2.3.4']}]",
    ):
        allow = policy(SELECT + f"action: ALLOW\nrules: [{{{rule}}}]")
        mesh = Imported(tmp_path, allow)
        assert not mesh.may(CURL)
        assert "not addresses" in mesh.narrower[0]
        deny = policy(SELECT + f"action: DENY\nrules: [{{{rule}}}]")
        assert not Imported(tmp_path, deny).may(CURL)


def test_trust_domain_migration_task(tmp_path: Path) -> None:
    both = policy(
        SELECT + "action: ALLOW\nrules: [{from: [{source: {principals: "
        "['old-td/ns/sleep-allow/sa/sleep', 'cluster.local/ns/foo/sa/curl']}}]}]"
    )
    mesh = Imported(tmp_path, both)
    assert mesh.narrower == []
    assert mesh.may(SpiffeId.parse("spiffe://old-td/ns/sleep-allow/sa/sleep"))
    assert mesh.may(CURL)
    assert not mesh.may(sid("sleep-allow", "sleep"))


@pytest.mark.parametrize(
    ("source", "who", "expected"),
    [
        ("principals: ['cluster.local/ns/foo/*']", CURL, True),
        ("principals: ['cluster.local/ns/fo*']", CURL, True),
        ("principals: ['cluster.local/ns/foo/sa/cu*']", CURL, True),
        ("principals: ['cluster.local/ns/bar/*']", CURL, False),
        ("principals: ['*/sa/curl']", CURL, True),
        ("principals: ['*/ns/foo/sa/curl']", CURL, True),
        ("principals: ['*']", CURL, True),
        ("namespaces: [foo]", CURL, True),
        ("namespaces: [bar]", CURL, False),
        ("namespaces: ['f*']", CURL, True),
        ("serviceAccounts: [curl]", CURL, True),
        ("serviceAccounts: [bar/sleep]", SLEEP, True),
        ("principals: ['cluster.local/ns/foo/sa/curl'], namespaces: [bar]", CURL, False),
    ],
)
def test_sources(tmp_path: Path, source: str, who: SpiffeId, *, expected: bool) -> None:
    rules = f"rules: [{{from: [{{source: {{{source}}}}}]}}]"
    mesh = Imported(tmp_path, policy(SELECT + "action: ALLOW\n" + rules))
    assert mesh.narrower == []
    assert mesh.may(who) is expected
    denied = Imported(tmp_path, policy(SELECT + "action: DENY\n" + rules))
    assert not (expected and denied.may(who))


@pytest.mark.parametrize(
    ("operation", "request_", "expected"),
    [
        ("paths: ['/info*']", {"path": "/info"}, True),
        ("paths: ['/info*']", {"path": "/information/x/"}, True),
        ("paths: ['/info*']", {"path": "/inf"}, False),
        ("paths: ['/a/*']", {"path": "/a/b/c"}, True),
        ("paths: ['/a/*']", {"path": "/a"}, False),
        ("paths: ['*']", {"path": "/a;x"}, True),
        ("paths: ['/']", {"path": "/"}, True),
        ("paths: ['/a/']", {"path": "/a/"}, True),
        ("paths: ['/a/{*}/b']", {"path": "/a/x/b"}, True),
        ("paths: ['/a/{*}/b']", {"path": "/a/x/y/b"}, False),
        ("paths: ['/a/{**}']", {"path": "/a/x/y"}, True),
        ("methods: [PURGE]", {"method": "PURGE"}, True),
        ("methods: ['*']", {"method": "X"}, True),
        ("notMethods: [GET]", {"method": "GET"}, False),
        ("notMethods: [GET]", {"method": "POST"}, True),
        ("hosts: ['shop.example.com']", {"host": "shop.example.com"}, True),
        ("hosts: ['*.example.com']", {"host": "a.b.example.com"}, True),
        ("hosts: ['*.example.com']", {"host": "example.com"}, False),
        ("hosts: ['x.com:*']", {"host": "x.com:80"}, True),
        ("ports: ['80']", {"port": 80}, True),
        ("ports: ['80']", {"port": 81}, False),
    ],
)
def test_operations(
    tmp_path: Path, operation: str, request_: dict[str, Any], *, expected: bool
) -> None:
    rules = f"rules: [{{to: [{{operation: {{{operation}}}}}]}}]"
    mesh = Imported(tmp_path, policy(SELECT + "action: ALLOW\n" + rules))
    assert mesh.may(CURL, **dict(request_)) is expected
    denied = Imported(tmp_path, policy(SELECT + "action: DENY\n" + rules))
    assert not (expected and denied.may(CURL, **dict(request_)))


@pytest.mark.parametrize(
    "rule",
    [
        "from: [{source: {principals: ['*curl']}}]",
        "from: [{source: {principals: ['cluster.*/ns/foo/sa/curl']}}]",
        "from: [{source: {principals: []}}]",
        "from: [{source: {notPrincipals: ['cluster.local/ns/foo/sa/curl']}}]",
        "from: [{source: {notNamespaces: [foo]}}]",
        "from: [{source: {namespaces: ['*foo']}}]",
        "to: [{operation: {paths: ['*.html']}}]",
        "to: [{operation: {paths: ['/a;b']}}]",
        "to: [{operation: {paths: ['/a/{**}/b']}}]",
        "to: [{operation: {notPaths: ['/a']}}]",
        "to: [{operation: {hosts: ['a*']}}]",
        "to: [{operation: {hosts: ['a.example.com:8080']}}]",
        "to: [{operation: {notPorts: ['80']}}]",
        "to: [{operation: {ports: ['http']}}]",
        "to: [{operation: {methods: ['G*']}}]",
        "to: [{operation: {unknown: [x]}}]",
        "when: [{key: 'request.headers[User-Agent]', values: [x]}]",
        "when: [{key: connection.sni, values: [x]}]",
        "when: [{key: source.ip, values: ['10.0.0.1']}]",
        "when: [{key: experimental.envoy.filters.x, values: [x]}]",
        "when: [{key: source.namespace, notValues: [foo]}]",
    ],
)
def test_what_cannot_be_said_allows_nothing_and_denies_everything(
    tmp_path: Path, rule: str
) -> None:
    allowed = Imported(tmp_path, policy(SELECT + f"action: ALLOW\nrules: [{{{rule}}}]"))
    assert not allowed.may(CURL)
    assert not allowed.may(SLEEP, path="/index.html")
    assert "the rule is left out" in allowed.narrower[0]
    assert allowed.found.findings[0].line > 1
    denied = Imported(tmp_path, policy(SELECT + f"action: DENY\nrules: [{{{rule}}}]"))
    # A denial's host has no port here, and "all but these" can be said of a denial.
    if "not" not in rule.lower() and "8080" not in rule:
        assert not denied.may(CURL)
        assert "more is denied" in denied.narrower[0]


@pytest.mark.parametrize(
    ("rule", "still", "gone"),
    [
        ("from: [{source: {notNamespaces: [foo]}}]", [(CURL, {})], [(SLEEP, {}), (OTHER, {})]),
        (
            "from: [{source: {notPrincipals: ['cluster.local/ns/foo/*']}}]",
            [(CURL, {})],
            [(OTHER, {})],
        ),
        (
            "to: [{operation: {notPaths: ['/a/*', '/']}}]",
            [(CURL, {"path": "/a/b"}), (CURL, {"path": "/"})],
            [(CURL, {"path": "/b"})],
        ),
        (
            "to: [{operation: {notPorts: ['80']}}]",
            [(CURL, {"port": 80})],
            [(CURL, {"port": 81})],
        ),
        (
            "to: [{operation: {notHosts: ['a.com']}}]",
            [(CURL, {"host": "a.com"})],
            [(CURL, {"host": "b.com"})],
        ),
        (
            "to: [{operation: {notHosts: ['a.com:8080']}}]",  # Istio denies every other port
            [],
            [(CURL, {"host": "a.com:8080"}), (CURL, {"host": "a.com:81"}), (CURL, {})],
        ),
        (
            "from: [{source: {namespaces: [bar]}}], to: [{operation: {notMethods: [GET]}}]",
            [(SLEEP, {"method": "GET"})],
            [(SLEEP, {"method": "PUT"})],
        ),
    ],
)
def test_denials_of_everything_but(
    tmp_path: Path, rule: str, still: list[Any], gone: list[Any]
) -> None:
    mesh = Imported(tmp_path, policy(SELECT + f"action: DENY\nrules: [{{{rule}}}]"))
    for who, request in still:
        assert mesh.may(who, **dict(request)), (who, request, mesh.found.allow)
    for who, request in gone:
        assert not mesh.may(who, **dict(request)), (who, request, mesh.found.allow)
    if "notHosts" in rule:
        assert [*mesh.narrower, *mesh.notes], "what differs from Istio is said"


def test_scopes(tmp_path: Path) -> None:
    everything = "action: ALLOW\nrules: [{}]"
    assert Imported(tmp_path, policy(everything)).may(OTHER)
    mesh = Imported(tmp_path, policy("{}", namespace="istio-system"), policy(everything, "q"))
    assert mesh.may(OTHER, HTTPBIN)
    assert not Imported(tmp_path, policy("{}", namespace="istio-system")).may(CURL, ECHO)
    # Workloads without an ALLOW policy take everything in Istio.
    open_mesh = Imported(tmp_path, policy(SELECT))
    assert open_mesh.may(OTHER, ECHO)
    assert not open_mesh.may(OTHER, HTTPBIN)
    deny_all = policy("action: DENY\nrules: [{}]")
    assert not Imported(tmp_path, policy(everything, "q"), deny_all).may(CURL)


def test_selectors_need_workloads(tmp_path: Path) -> None:
    allow = policy(SELECT + "action: ALLOW\nrules: [{}]")
    mesh = Imported(tmp_path, allow, workloads="kind: Service\nmetadata: {name: x}\n")
    assert not mesh.may(CURL)
    assert "add its manifest" in mesh.narrower[0]
    shared = WORKLOADS.replace("serviceAccountName: tcp-echo", "serviceAccountName: httpbin")
    mesh = Imported(tmp_path, allow, workloads=shared)
    assert not mesh.may(CURL)
    assert "accounts of their own" in mesh.narrower[0]
    refs = policy("targetRefs: [{kind: Gateway, name: g}]\naction: ALLOW\nrules: [{}]")
    assert not Imported(tmp_path, refs).may(CURL)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("kind: AuthorizationPolicy\nspec:\n  selector:\n    matchLabels: a b\n", 4),
        ("kind: Pod\nmetadata:\n  name: p\n  labels: [a]\n", 4),
    ],
)
def test_labels_that_are_no_mapping_are_refused_with_their_place(
    tmp_path: Path, text: str, line: int
) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=rf"odd\.yaml:{line}: labels are a mapping"):
        convert(read_manifests([file]), trust_domain=DOMAIN)


def test_a_mode_that_is_no_word_is_none_that_weakens(tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(
        "kind: PeerAuthentication\nmetadata: {name: p}\nspec: {mtls: {mode: [PERMISSIVE]}}\n"
    )
    assert convert(read_manifests([file]), trust_domain=DOMAIN) == Conversion()


def test_other_actions_and_peer_authentication(tmp_path: Path) -> None:
    audit = policy(SELECT + "action: AUDIT\nrules: [{}]")
    mesh = Imported(tmp_path, audit)
    assert mesh.may(CURL)
    assert mesh.narrower == []
    assert "AUDIT only logs" in mesh.notes[0]
    custom = policy(SELECT + "action: CUSTOM\nprovider: {name: x}\nrules: [{}]")
    mesh = Imported(tmp_path, custom)
    assert not mesh.may(CURL)
    assert mesh.may(CURL, ECHO)
    peers = (
        "kind: PeerAuthentication\nmetadata: {name: m, namespace: foo}\n"
        "spec: {mtls: {mode: %s}, portLevelMtls: {8080: {mode: %s}}}\n"
    )
    assert Imported(tmp_path, peers % ("STRICT", "STRICT")).narrower == []
    assert len(Imported(tmp_path, peers % ("PERMISSIVE", "DISABLE")).narrower) == 2


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.main, ["policy", "import", "istio", *map(str, arguments)])


def test_the_command(tmp_path: Path) -> None:
    good = tmp_path / "good.yaml"
    good.write_text(policy("action: ALLOW\nrules: [{from: [{source: {namespaces: [bar]}}]}]"))
    out = tmp_path / "policy.yaml"
    result = run(good, "--trust-domain", "example.org", "--out", out)
    assert result.exit_code == 0, result.output
    lint = CliRunner().invoke(cli.main, ["policy", "lint", str(out)])
    assert lint.exit_code == 0, lint.output
    assert "spiffe://example.org/ns/bar/sa/*" in out.read_text()
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        "kind: AuthorizationPolicy\nmetadata: {name: p, namespace: foo}\nspec:\n  action: ALLOW\n"
        "  rules:\n  - from:\n    - source:\n        ipBlocks: ['10.0.0.0/8']\n"
    )
    result = run(bad)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert f"{bad}:8: AuthorizationPolicy foo/p: ipBlocks cannot be expressed" in result.stderr
    result = run(bad, "--partial")
    assert result.exit_code == 1
    assert f"# not said: {bad}:8:" in result.stdout
    assert yaml.safe_load(result.stdout)["allow"] == []


@pytest.mark.parametrize(
    "text",
    ["", "a: [", "- 1\n", "kind: {}\n", "kind: AuthorizationPolicy\nspec: 5\n", "spec: {}\n"],
)
def test_manifests_that_are_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    result = run(file)
    assert result.exit_code in {0, 2}, result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "text",
    [
        "kind: AuthorizationPolicy\nmetadata: {name: p, namespace: 'b d'}\nspec: {rules: [{}]}\n",
        "kind: Pod\nmetadata: {name: p, namespace: foo}\nspec: {serviceAccountName: 'b d'}\n",
    ],
)
def test_names_that_no_spiffe_id_contains_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    result = run(file)
    assert result.exit_code == 2
    assert "cannot be converted" in result.stderr
    assert "b d" in result.stderr


def test_a_name_of_several_lines_adds_nothing_to_the_document(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        'kind: AuthorizationPolicy\nmetadata: {name: "x\\nrequests_enforce: false\\n# \\e[31m"}\n'
        "spec: {rules: [{when: [{key: 'request.headers[x]', values: [a]}]}]}\n"
    )
    result = run(file, "--partial")
    assert result.exit_code == 1
    assert "requests_enforce" not in yaml.safe_load(result.stdout)
    assert result.stderr.count("\n") == 1
    assert "\x1b" not in result.output
