"""What a workload's Envoy must enforce, by a policy and a moment."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sds.errors import ConfigurationError
from sds.identity import SpiffeId
from sds.policy.authorization import authorization_of
from sds.policy.authorized import Authorization, AuthorizationRule
from sds.policy.difference import _field, differences
from sds.policy.document import PolicyDocument
from sds.policy.trust import Policy, authenticate
from sds.rules.pattern import format_spiffe_pattern
from sds.settings import yamlfile
from tests.support.policies import DOMAIN, NOW, Signatory, document, sign, trusting

ALICE = Signatory("alice")
S = "spiffe://example.org"
DB = SpiffeId.parse(f"{S}/db")


def policy(**fields: Any) -> Policy:
    signed = sign(document(7, **fields), ALICE)
    return authenticate(signed, trusted=trusting(ALICE), trust_domain=DOMAIN)


def made(*allow: dict[str, Any], **fields: Any) -> Authorization:
    return authorization_of(policy(allow=list(allow), **fields), DB, now=NOW)


def shown(rules: tuple[AuthorizationRule, ...] | None) -> dict[str, list[str]]:
    assert rules is not None
    return {rule.name: [format_spiffe_pattern(glob) for glob in rule.principals] for rule in rules}


GET = {"methods": ["GET"], "paths": ["/orders/**"]}


def test_rules_are_grouped_by_what_they_allow_and_by_trust_domain() -> None:
    found = made(
        {"from": f"{S}/web", "to": f"{S}/db", "requests": [GET]},
        {"from": [f"{S}/ops/*", "spiffe://partner.org/gate"], "to": f"{S}/*"},
        {"from": f"{S}/job", "to": f"{S}/db", "requests": [GET]},
        {"from": f"{S}/web", "to": f"{S}/other"},
    )
    assert shown(found.enforced) == {
        "example.org: GET /orders/**": [f"{S}/job", f"{S}/web"],
        "example.org: everything": [f"{S}/ops/*"],
        "partner.org: everything": ["spiffe://partner.org/gate"],
    }
    assert all(
        glob.parts[0] == rule.trust_domain for rule in found.enforced for glob in rule.principals
    )
    assert found.shadow is None
    assert found.epoch == 7
    assert found.ends_at == datetime(2027, 1, 1, tzinfo=UTC)


def test_the_order_of_rules_and_of_lists_means_nothing() -> None:
    one = {"from": f"{S}/web", "to": f"{S}/db", "requests": [GET, {"ports": [1, 2]}]}
    two = {"from": f"{S}/ops", "to": f"{S}/db"}
    turned = {**one, "requests": [{"ports": [2, 1, 1]}, GET]}
    assert made(one, two) == made(two, turned)


@pytest.mark.parametrize("where", ["rule", "document"])
def test_what_is_not_enforced_is_counted_but_who_may_connect_is_enforced(where: str) -> None:
    rule = {"from": f"{S}/web", "to": f"{S}/db", "requests": [GET]}
    if where == "rule":
        found = made({**rule, "requests_enforce": False})
    else:
        found = made(rule, requests_enforce=False)
    assert shown(found.enforced) == {"example.org: everything": [f"{S}/web"]}
    assert shown(found.shadow) == {"example.org: GET /orders/**": [f"{S}/web"]}


def test_one_rule_that_is_not_enforced_leaves_the_others_enforced() -> None:
    found = made(
        {"from": f"{S}/web", "to": f"{S}/db", "requests": [GET], "requests_enforce": False},
        {"from": f"{S}/job", "to": f"{S}/db", "requests": [GET]},
    )
    assert shown(found.enforced) == {
        "example.org: GET /orders/**": [f"{S}/job"],
        "example.org: everything": [f"{S}/web"],
    }
    assert shown(found.shadow) == {"example.org: GET /orders/**": [f"{S}/job", f"{S}/web"]}


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2027, 1, 1, tzinfo=UTC),
        datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC),
        NOW + timedelta(days=900),
    ],
)
def test_outside_of_its_window_nothing_is_allowed(moment: datetime) -> None:
    everybody = policy(allow=[{"from": f"{S}/**", "to": f"{S}/**"}])
    assert authorization_of(everybody, DB, now=moment) == Authorization(identity=DB)


def test_without_a_policy_and_for_a_name_that_no_rule_reaches_nothing_is_allowed() -> None:
    assert authorization_of(None, DB, now=NOW) == Authorization(identity=DB)
    found = made({"from": f"{S}/web", "to": f"{S}/other"})
    assert found.enforced == ()
    assert found.ends_at is not None


def test_long_names_are_cut_and_stay_apart() -> None:
    paths = [[f"/{letter * 100}/{number}" for letter in "ab"] for number in range(2)]
    found = made(
        *({"from": f"{S}/web", "to": f"{S}/db", "requests": [{"paths": one}]} for one in paths)
    )
    assert len({rule.name for rule in found.enforced}) == 2
    assert all(len(rule.name) < 120 for rule in found.enforced)


@pytest.mark.parametrize(
    ("requests", "said"),
    [
        (None, r"allow\[0\].requests: expected a list, found nothing"),
        *(
            (
                [{"ports": [80], "hosts": ["a"], name: None}],
                f"{name}: expected a list, found nothing",
            )
            for name in ("methods", "paths", "hosts", "ports")
        ),
        ([], "1 or more entries"),
        ([{}], "name methods, paths, hosts or ports"),
        ([{"methods": []}], "1 or more entries"),
        ([{"methods": ["get"]}], "is not an HTTP method"),
        ([{"paths": ["orders"]}], "does not begin with '/'"),
        ([{"hosts": ["UPPER"]}], "is not valid"),
        ([{"ports": [0]}], "expected 1 or more"),
        ([{"ports": ["80"]}], "a whole number"),
        ([{"path": ["/x"]}], "did you mean paths?"),
    ],
)
def test_requests_that_say_nothing_or_nothing_valid(requests: Any, said: str) -> None:
    rule = {"from": f"{S}/web", "to": f"{S}/db", "requests": requests}
    with pytest.raises(ConfigurationError, match=said):
        yamlfile.validate(document(allow=[rule]), PolicyDocument, what="test")


def lines(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    one, two = (
        yamlfile.validate(document(**fields), PolicyDocument, what="test") for fields in (old, new)
    )
    return differences(one, two)


def test_a_comma_in_a_path_is_told_apart_from_two_paths() -> None:
    one, two = ({"paths": paths} for paths in (["/a,/b"], ["/a", "/b"]))
    allowed = made(
        {"from": f"{S}/web", "to": f"{S}/db", "requests": [one]},
        {"from": f"{S}/ops", "to": f"{S}/db", "requests": [two]},
    )
    # Envoy keeps policies by name: rules of one name would become one, which Envoy refuses.
    assert shown(allowed.enforced) == {
        r"example.org: /a\,/b": [f"{S}/web"],
        "example.org: /a,/b": [f"{S}/ops"],
    }
    before, after = (
        {"allow": [{"from": f"{S}/web", "to": f"{S}/db", "requests": [each]}]}
        for each in (one, two)
    )
    assert lines(before, after) == [rf"allow: what {S}/web may ask of {S}/db: /a\,/b becomes /a,/b"]


def test_a_text_that_looks_like_a_list_is_told_apart_from_one() -> None:
    before, after = (
        {"workloads": [{"name": "web", "match": {"k8s:sa": value}, "spiffe_id": f"{S}/web"}]}
        for value in ("[web]", ["web"])
    )
    assert lines(before, after) == ["workloads: web.match.k8s:sa: '[web]' becomes ['web']"]


def test_differences_in_requests_are_told_in_words() -> None:
    plain = {"from": f"{S}/web", "to": f"{S}/db"}
    limited = {**plain, "requests": [GET]}
    words = f"allow: what {S}/web may ask of {S}/db:"
    assert lines({"allow": [plain]}, {"allow": [limited]}) == [
        f"{words} everything becomes GET /orders/**"
    ]
    assert lines({"allow": [limited]}, {"allow": [limited, plain]}) == [
        f"{words} GET /orders/** becomes everything"
    ]
    assert lines({}, {"allow": [limited]}) == [
        f"allow: {S}/web may now talk to {S}/db and ask for GET /orders/**"
    ]
    tried = f"{words} GET /orders/** becomes GET /orders/** (others are counted, not denied)"
    assert lines({"allow": [limited]}, {"allow": [{**limited, "requests_enforce": False}]}) == [
        tried
    ]
    assert lines({"allow": [limited]}, {"allow": [limited], "requests_enforce": False}) == [tried]
    assert lines({"allow": [plain]}, {"allow": [plain], "requests_enforce": False}) == []


def test_what_changes_in_a_long_list_is_found_in_proportion_to_its_length() -> None:
    def seconds(length: int) -> float:
        one = [{"spiffe_ids": [f"{S}/{number}"]} for number in range(length)]
        begun = time.process_time()
        assert len(_field("grants", one, [*one[1:], {"spiffe_ids": [f"{S}/new"]}])) == 2
        return time.process_time() - begun

    small, large = (min(seconds(length) for _ in range(3)) for length in (500, 8000))
    assert large < 60 * small  # 16 times, and 200 times where each is compared with all
