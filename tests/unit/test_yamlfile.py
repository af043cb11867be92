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
        ("\ufeffa: 1", 1),
        ("a: 1\r\nb: 2\r\n", 1),
        ("a: Zürich\u2019s ☃", "Zürich\u2019s ☃"),
        ('a: "\xa0“x”"', "\xa0“x”"),
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
        ("a: 1\nb: \x00", "policy.yaml, line 2: the character U+0000 (a control character)"),
        ("a: \x1b[2J", "policy.yaml, line 1: the character U+001B (a control character)"),
        ("a: 1\n".encode("utf-16"), "policy.yaml is not UTF-8 (byte 0) (save it as UTF-8)"),
        ("a: 1\n".encode("utf-16-le"), "is not allowed (save the file as UTF-8 text)"),
        # As copied from a page or a word processor.
        ("a: 1\n\xa0b: 2\n", "line 2, column 1: the character U+00A0 (NO-BREAK SPACE)"),
        ("a: 1\nb:\xa0{c: 2}\nd: 1\n", "line 2, column 1: the character U+00A0"),
        ("a:\n - b: x\n \xa0 c: y\n", "the character U+00A0 (NO-BREAK SPACE) only looks like"),
        ("a: \u201cx\u201d", "column 4: the character U+201C (LEFT DOUBLE QUOTATION MARK)"),
        ("a: x\u2019", "column 4: the character U+2019 (RIGHT SINGLE QUOTATION MARK)"),
        ("a: x\u200b", "column 4: the character U+200B (ZERO WIDTH SPACE)"),
        ("a: 1\n\ufeffb: 1\n", "the character U+FEFF (ZERO WIDTH NO-BREAK SPACE)"),
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
        ({"TRUST_DOMAIN": "x"}, "TRUST_DOMAIN: unknown field, did you mean trust_domain?"),
        ({"Trust-Domain": "x"}, "Trust-Domain: unknown field, did you mean trust_domain?"),
        ({"trust domain": "x"}, "'trust domain': unknown field, did you mean trust_domain?"),
        ({"trust_domain": "x", "\u201cmaybe\u201d": 1}, "'“maybe”': unknown field, did you mean m"),
        # Indented too little, and too much.
        (
            {"trust_domain": "x", "workloads": None, "lifetime": 1},
            "lifetime: unknown field here; there is workloads[].lifetime, maybe.lifetime: check",
        ),
        (
            {"trust_domain": "x", "maybe": {"spiffe_id": "a", "workloads": []}},
            "maybe.workloads: unknown field here; there is workloads: check the indentation",
        ),
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
