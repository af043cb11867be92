"""Strict YAML: what it means, what is refused, and how that is said."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, ConfigDict

from sds.errors import ConfigurationError
from sds.settings import yamlfile

if TYPE_CHECKING:
    from pathlib import Path


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    lifetime: int = 1
    spiffe_id: str


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    trust_domain: str
    workloads: list[Inner] = []
    by_name: dict[str, Inner] = {}
    maybe: Inner | None = None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: no", "no"),
        ("a: on", "on"),
        ("a: true", True),
        ("a: 'true'", "true"),
        ("a: 12", 12),
        ("a: -3", -3),
        ("a: 0x10", 16),
        ("a: 1.5", 1.5),
        ("a: 1e3", 1000.0),
        ("a: .", "."),
        ("a: +", "+"),
        ("a:", None),
        ("a: ~", None),
        ("a: ''", ""),
        ("a: 2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
        ("a: " + "12" * 48, "12" * 48),
        ("a: " + "1" * 40 + "e" + "1" * 55, "1" * 40 + "e" + "1" * 55),
        ("a: 1234567890123456789", "1234567890123456789"),
        ("a: [1, {b: c}]", [1, {"b": "c"}]),
        ("a: |\n  x\n  y\n", "x\ny\n"),
        ("x: &n [1]\na: *n", [1]),
        ("a: !!", None),
    ],
)
def test_values(text: str, value: Any) -> None:
    if text.endswith("!!"):
        with pytest.raises(ConfigurationError):
            yamlfile.parse(text, what="x")
        return
    assert yamlfile.parse(text, what="x")["a"] == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "policy.yaml, line 4, column 3: the key 'c' appears twice"),
        ("a: !!python/object:os.system x", "the tag"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "merge keys"),
        ("a: *nothing", "stands for nothing"),
        ("a: &a [*a]", "stands for nothing"),
        ("? [1]\n: 2", "a key must be plain text"),
        ("a: [1", "line 2"),
        ("a: 1\n---\nb: 2\n", "2 YAML documents"),
        ("", "0 YAML documents"),
        ("[" * 200, "nested more than"),
        (b"a: \xff", "not UTF-8 (byte 3)"),
        ("a: \x00", "not"),
    ],
)
def test_refusals(text: str | bytes, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        yamlfile.parse(text, what="policy.yaml")
    assert said in str(caught.value)


def test_aliases_that_blow_up_end_soon() -> None:
    text = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n"
        for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True)
    )
    started = time.process_time()
    with pytest.raises(ConfigurationError, match="aliases expanded"):
        yamlfile.parse(text, what="x")
    assert time.process_time() - started < 30


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"trust_domian": "x"}, "trust_domian: unknown field, did you mean trust_domain?"),
        (
            {"trust_domain": "x", "workloads": [{"spiffe_id": "a", "lifetim": 1}]},
            "workloads[0].lifetim: unknown field, did you mean lifetime?",
        ),
        (
            {"trust_domain": "x", "by_name": {"w": {"spiffe_id": "a", "spifeid": 1}}},
            "by_name.w.spifeid: unknown field, did you mean spiffe_id?",
        ),
        (
            {"trust_domain": "x", "maybe": {"spiffe_id": "a", "qqq": 1}},
            "maybe.qqq: unknown field; known are lifetime, spiffe_id",
        ),
        ({}, "trust_domain: missing"),
        ({"trust_domain": 1}, "trust_domain: expected text, found the number 1: put it in quotes"),
        (None, "x is empty"),
        ([], "no mapping"),
    ],
)
def test_models(data: Any, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        yamlfile.validate(data, Outer, what="x")
    assert said in str(caught.value)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("trust_domain: example.org\n")
    assert yamlfile.load_file(path, Outer).trust_domain == "example.org"
    with pytest.raises(ConfigurationError, match="larger than 5 bytes"):
        yamlfile.load_file(path, Outer, max_bytes=5)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        yamlfile.load_file(tmp_path / "b.yaml", Outer)
