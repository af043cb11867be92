"""``sds policy explain`` and ``sds policy test`` about requests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from sds import cli
from tests.support.policies import document, yaml_bytes

if TYPE_CHECKING:
    from pathlib import Path

S = "spiffe://example.org"
ORDERS = {"methods": ["GET"], "paths": ["/orders/*"], "hosts": ["shop.example.org"]}
ALLOW = [
    {"from": f"{S}/web", "to": f"{S}/shop", "requests": [ORDERS, {"ports": [9000]}]},
    {
        "from": f"{S}/try",
        "to": f"{S}/shop",
        "requests": [{"methods": ["GET"]}],
        "requests_enforce": False,
    },
    {"from": f"{S}/ops", "to": f"{S}/*"},
]


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    file = tmp_path / "policy.yaml"
    file.write_bytes(yaml_bytes(document(allow=ALLOW)))
    return file


def explain(policy: Path, source: str, *request: str) -> tuple[int, str]:
    arguments = ["policy", "explain", str(policy), "--from", f"{S}/{source}", "--to", f"{S}/shop"]
    result = CliRunner().invoke(cli.main, [*arguments, *request])
    assert "Traceback" not in result.output
    return result.exit_code, result.output


HOST = ("--host", "shop.example.org:8443")


@pytest.mark.parametrize(
    ("source", "request_", "status", "said"),
    [
        ("web", ("--path", "/orders/1", *HOST), 0, "allow[0]: from"),
        ("web", ("--path", "/a/..//orders/%31?x=1", *HOST), 0, "the path is /orders/1"),
        ("web", ("--method", "PUT", "--path", "/orders/1", *HOST), 1, "(it differs in method)"),
        ("web", ("--path", "/orders/1/2", *HOST), 1, "(it differs in path)"),
        ("web", ("--path", "/orders/1"), 1, "(it differs in host)"),
        ("web", ("--path", "/orders%2f1", *HOST), 1, "Envoy answers 400"),
        ("web", ("--path", "orders/1", *HOST), 1, "'orders/1' (a path begins with '/'"),
        ("web", ("--path", "/orders/x;y", *HOST), 1, "no rule that lets it connect"),
        ("web", ("--port", "9000", "--path", "/any"), 0, "port 9000"),
        ("web", ("--port", "9001"), 1, "it differs in"),
        ("try", ("--method", "PUT"), 0, "another request is counted and let through"),
        ("ops", ("--method", "DELETE", "--path", "/x"), 0, "allow[2]"),
        ("nobody", ("--path", "/orders/1", *HOST), 1, "no rule under `allow` matches both"),
    ],
)
def test_explain(
    policy: Path, source: str, request_: tuple[str, ...], status: int, said: str
) -> None:
    code, text = explain(policy, source, *request_)
    assert code == status, text
    assert said in text


@pytest.mark.parametrize(
    "arguments",
    [
        ("--caller", "unix:uid=1", "--path", "/x"),
        ("--from", f"{S}/web", "--to", "db", "--path", "/x"),
        ("--from", f"{S}/web", "--to", f"{S}/shop", "--port", "0"),
    ],
)
def test_usage(policy: Path, arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli.main, ["policy", "explain", str(policy), *arguments])
    assert result.exit_code == 2, result.output


def case(expect: str, source: str, **request: Any) -> dict[str, Any]:
    return {"from": f"{S}/{source}", "to": f"{S}/shop", "request": request, "expect": expect}


def test_cases(policy: Path, tmp_path: Path) -> None:
    host = "shop.example.org"
    good = [
        case("allowed", "web", path="/orders/1", host=host),
        case("refused", "web", path="/orders/1", host=host, method="PUT"),
        case("refused", "web", path="/orders%2f1", host=host),
        case("allowed", "web", path="/x", port=9000),
        case("allowed", "ops", method="DELETE"),
        case("refused", "nobody"),
    ]
    file = tmp_path / "cases.yaml"
    file.write_bytes(yaml_bytes({"cases": [*good, case("refused", "try", method="PUT")]}))
    arguments = ["policy", "test", str(policy), str(file), "--output", "json"]
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 1
    verdict = json.loads(result.stdout)
    assert [one["ok"] for one in verdict["cases"]] == [True] * 6 + [False]


def test_a_request_is_asked_of_a_spiffe_id(policy: Path, tmp_path: Path) -> None:
    file = tmp_path / "cases.yaml"
    file.write_bytes(yaml_bytes({"cases": [{**case("allowed", "web", path="/x"), "to": "db"}]}))
    result = CliRunner().invoke(cli.main, ["policy", "test", str(policy), str(file)])
    assert result.exit_code == 2
    assert "must be a SPIFFE ID" in result.stderr
