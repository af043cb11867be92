"""Every field of both configurations, with everything that a person could write by mistake."""

from __future__ import annotations

import copy
import re
import typing
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from pydantic import BaseModel

from sds.agent.config import AgentConfig
from sds.attestation.azure.verifier import AzureValues
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.tpm.verifier import TpmValues
from sds.ca.config import AuthorityConfig
from sds.errors import ConfigurationError
from sds.policy.document import PolicyDocument
from sds.settings import yamlfile
from sds.settings.model_fields import members
from sds.settings.value_errors import expected_words

if TYPE_CHECKING:
    from collections.abc import Iterator

VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    float("nan"),
    float("inf"),
    10**30,
    "",
    "x",
    "\0",
    "☃",
    "a: b",
    "a" * 5000,
    "-----BEGIN",
    [],
    ["x"],
    [[]],
    {},
    {"x": 1},
    {"": {}},
]
AGENT: dict[str, Any] = {
    "trust_domain": "example.org",
    "run_dir": "/run/x",
    "authority": {"addresses": ["a:1"]},
    "workloads": [{"name": "w", "spiffe_id": "spiffe://example.org/w"}],
}
AUTHORITY: dict[str, Any] = {
    "trust_domain": "example.org",
    "listen": "127.0.0.1:1",
    "identities": [{"measurement": "00" * 48, "spiffe_ids": ["spiffe://example.org/**"]}],
}
POLICY: dict[str, Any] = {
    "version": 1,
    "trust_domain": "example.org",
    "epoch": 1,
    "not_before": "2026-01-01T00:00:00Z",
    "not_after": "2026-02-01T00:00:00Z",
}
JARGON = re.compile(
    r"Input|instance of|pydantic|String should|List should|Value error|tag|\bclass\b|\^"
    r"|Unable to|function-|_kind|Traceback",
    re.ASCII,
)


def models(kind: Any) -> Iterator[tuple[tuple[int, ...], type[BaseModel]]]:
    """Models among a field's types; the path has  0 if they are entries of a list."""
    for member in members(kind):
        listed = typing.get_origin(member) in (list, tuple)
        inner = typing.get_args(member) if listed else (member,)
        for each in inner:
            for one in members(each):
                if isinstance(one, type) and issubclass(one, BaseModel):
                    yield (0,) if listed else (), one


def paths(model: type[BaseModel], seen: tuple[type, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for name, field in model.model_fields.items():
        yield (field.alias or name,)
        for between, inner in models(field.annotation):
            if inner not in seen:
                for rest in paths(inner, (*seen, inner)):
                    yield (field.alias or name, *between, *rest)


def put(base: dict[str, Any], path: tuple[Any, ...], *, value: Any) -> dict[str, Any]:
    made = copy.deepcopy(base)
    here: Any = made
    for step, following in pairwise(path):
        new: Any = [] if following == 0 else {}
        if step == 0:
            if not here:
                here.append(new)
            here = here[0]
            continue
        if not isinstance(here.get(step), dict | list):
            here[step] = new
        here = here[step]
    here[path[-1]] = value
    return made


WRITTEN: dict[type[BaseModel], tuple[dict[str, Any], int]] = {
    AgentConfig: (AGENT, 2_000),
    AuthorityConfig: (AUTHORITY, 2_000),
    PolicyDocument: (POLICY, 2_000),
    ReferenceValues: ({}, 1_000),
    TpmValues: ({}, 50),
    AzureValues: ({}, 50),
}
"""Each model that a person writes: a base for what is put into it, and how many values to try."""


@pytest.mark.parametrize("model", WRITTEN)
def test_every_wrong_value_is_refused_in_words(model: type[BaseModel]) -> None:
    base, least = WRITTEN[model]
    tried = refusals = 0
    told = []
    for path in paths(model):
        for value in VALUES:
            tried += 1
            try:
                yamlfile.validate(put(base, path, value=value), model, what="f.yaml")
            except ConfigurationError as error:
                refusals += 1
                words = re.sub(r"'(?:[^'\\]|\\.)*'|the text \".*?\"", "", str(error))
                if JARGON.search(words):
                    told.append((path, value, str(error)))
    assert not told, told
    assert tried > least
    assert refusals > tried / 2


@pytest.mark.parametrize("model", WRITTEN)
def test_true_is_no_number(model: type[BaseModel]) -> None:
    base, _ = WRITTEN[model]
    for path in paths(model):
        try:
            found: Any = yamlfile.validate(put(base, path, value=True), model, what="f.yaml")
        except ConfigurationError:
            continue
        for step in path:
            found = found[0] if step == 0 else getattr(found, step)
        assert found is True, path


def patterns(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("pattern"), str):
            yield schema["pattern"]
        for each in schema.values():
            yield from patterns(each)
    elif isinstance(schema, list):
        for each in schema:
            yield from patterns(each)


@pytest.mark.parametrize("model", WRITTEN)
def test_every_pattern_has_words(model: type[BaseModel]) -> None:
    def fields(of: type[BaseModel], seen: set[type]) -> Iterator[str]:
        seen.add(of)
        for field in of.model_fields.values():
            for found in re.findall(r"pattern='((?:[^'\\]|\\.)*)'", repr(field)):
                yield found.replace("\\\\", "\\")
            for _, inner in models(field.annotation):
                if inner not in seen:
                    yield from fields(inner, seen)

    found = set(fields(model, set()))
    assert found
    assert [each for each in sorted(found) if expected_words(each) is None] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a:\n\tb: 1\n", ", column 1: a tab, where YAML allows spaces only"),
        (
            "authority:\n  a: 1\n b: 2\n",
            "column 2: this line does not fit the block that it is in (give",
        ),
        ("authority:\n- a\nb: 2\n- c\n", "this line does not fit the block that it is in (give"),
        ("authority: b: 2\n", "a ':' where no field can begin (add a missing ':' before it"),
        ("authority\nb: 2\n", "a ':' is missing after this field, or after the one before"),
        ("authority: [a\nb: 2\n", "a list that began with [ is not ended (end it with ]"),
        ("authority: {a: 1\nb: 2\n", "a block that began with { is not ended (end it with }"),
        ("authority: [::1]:8443\n", "no value can begin here (put a value that begins with ["),
        ("authority: *.a\n", "* begins an alias (put the value in quotes)"),
        ("authority: {addresses: [[::1]:8443]}\n", "column 25: "),
        ("authority: 'a\n", "the file ends within a value (add the quote"),
        ("authority: @a\n", "(put the value in quotes)"),
        (
            "authority: {tls: {root: /r, server_name: 'a:1'}}",
            "f: authority.addresses: missing; authority.tls.server_name: D",
        ),
        ("workloads:\n- match: {unix:uid: 1000}", "expected text, found the number 1000: put it"),
        ("authority: {kind: istoi}", "authority.kind: expected sds, istio, found the text 'istoi'"),
        ("authority: {addresses: [a], tls: 3}", "authority.tls: expected"),
        ("limits: {message: 4GiB}", "limits.message: expected 2147483647 or less"),
        (
            "limits: {request_burst: 9999999999}",
            "limits.request_burst: expected 2147483647",
        ),
    ],
)
def test_mistakes_that_people_make(text: str, said: str) -> None:
    good = yaml.safe_dump(
        {"trust_domain": "a.test", "run_dir": "/r", "node": {"attestors": ["unix"]}}
    )
    with pytest.raises(ConfigurationError) as caught:
        yamlfile.validate(yamlfile.parse(good + text, what="f"), AgentConfig, what="f")
    assert said in str(caught.value)
