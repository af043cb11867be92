"""The configuration's models as blocks of fields, with types in words and examples of values.

Invariant: a field that a model has is in its block, with its type, default and meaning. What this
file adds are examples (:data:`EXAMPLES`); a field without one gets an example of its type.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import re
import typing
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from sds.rules.glob import Glob

if typing.TYPE_CHECKING:
    from collections.abc import Mapping

_HEX: Final = "4f2a" * 24
MODELS: Final = {
    "admission": "sds.admission.settings:AdmissionConfig",
    "agent": "sds.agent.config:AgentConfig",
    "ca": "sds.ca.config:AuthorityConfig",
}
_LABELS: Final = {"WorkloadSection": "a socket of its own", "WorkloadRule": "a rule"}
"""What tells forms of a block apart that have no field for it."""
_HOMES: Final = {"VerificationSection": "verification"}
"""Large blocks that a file may have in several places, and the place where they are explained."""
EXAMPLES: Final[Mapping[str, Any]] = {
    "always.sandbox": "sha256:" + "1" * 64,
    "always.containers": ["sha256:" + "2" * 64],
    "cri.pods.sandbox": "sha256:" + "1" * 64,
    "cri.pods.containers": ["sha256:" + "2" * 64],
    "trust_domain": "example.org",
    "run_dir": "/run/attested-sds",
    "addresses": ["ca.example.org:8443"],
    "authority.istio.addresses": ["istiod.istio-system.svc:15012"],
    "token": "/var/run/secrets/tokens/istio-token",
    "root": "/etc/attested-sds/authority-root.pem",
    "server_name": "ca.example.org",
    "attestation.kind": "auto",
    "descriptor": 3,
    "privilege_level": 0,
    "product": "genoa",
    "certificates": "/etc/attested-sds/certificates",
    "certificate_server": "https://kds.example.org",
    "projected_token": "/var/run/secrets/tokens/attested-sds",
    "url": "https://10.0.0.1:10250",
    "ca_file": "/etc/attested-sds/kubernetes-root.pem",
    "token_file": "/etc/attested-sds/kubernetes-token",
    "collateral": "/etc/attested-sds/collateral",
    "measurements": [_HEX],
    "measurement": _HEX,
    "minimum_firmware": [1, 55, 0],
    "minimum_policy_abi": [1, 55],
    "permit_vcek": True,
    "workloads.name": "web",
    "workloads.spiffe_id": "spiffe://example.org/web",
    "workloads.rule.name": "operators",
    "workloads.rule.match": {"unix:uid": "1000"},
    "workloads.rule.spiffe_id": "spiffe://{trust_domain}/operator",
    "workloads.rule.lifetime": "1h",
    "workloads.rule.key_type": "ec-p256",
    "attestors": ["unix"],
    "node.attestors": ["unix"],
    "cgroup_root": "/kubepods",
    "runtime_cgroup": "/system.slice",
    "group": "envoy",
    "health.listen": "127.0.0.1:8081",
    "metrics.listen": "127.0.0.1:9464",
    "status_page.listen": "127.0.0.1:9465",
    "serve.listen": "127.0.0.1:9466",
    "collateral.listen": "0.0.0.0:8082",
    "file": "/etc/attested-sds/policy.json",
    "directory": "/etc/attested-sds/policy.d",
    "keys": ["/etc/attested-sds/alice.pub", "/etc/attested-sds/bob.pub"],
    "threshold": 2,
    "root_retention": "1h",
    "bundles.trust_domain": "partner.example",
    "bundles.endpoint": "https://bundle.partner.example/bundle",
    "bundles.endpoint_spiffe_id": "spiffe://partner.example/bundle",
    "bundles.file": "/etc/attested-sds/partner.json",
    "bundles.refresh": "5m",
    "identities.spiffe_ids": ["spiffe://example.org/**"],
    "identities.dns_names": ["**.svc.cluster.local"],
    "csr_file": "/var/lib/attested-sds-ca/authority.csr",
    "chain_file": "/var/lib/attested-sds-ca/chain.pem",
    "roots_file": "/etc/attested-sds/roots.pem",
    "certificate_file": "/etc/attested-sds/tls.pem",
    "key_file": "/run/credentials/attested-sds-ca.service/tls.key",
    "jwks_file": "/etc/attested-sds/jwks.json",
    "service_accounts": ["attested-sds/attested-sds-agent"],
}
"""Values by the end of a path (forms of a block by their kind, ``rule`` for a workload's rule)."""


_NAMES: Final = {
    "timedelta": "[duration](configuration.md#duration)",
    "bool": "true or false",
    "Path": "[path](configuration.md#path)",
    "bytes": "[hexadecimal](configuration.md#hexadecimal)",
    "SpiffeId": "[SPIFFE ID](configuration.md#spiffe-id)",
    "TrustDomain": "trust domain",
}
"""Types in words, by their name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One field. ``blocks``: the forms that it can have where it is a block."""

    path: str
    name: str
    type: str
    is_required: bool
    default: Any
    meaning: str
    example: Any
    blocks: tuple[Block, ...]
    many: typing.Literal["", "list", "mapping"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One block of a configuration, in one of its forms.

    ``same_as``: the block that explains its fields, where that is another one.
    """

    path: str
    label: str
    summary: str
    entries: tuple[Entry, ...]
    same_as: str = ""

    @property
    def title(self) -> str:
        return f"{self.path} ({self.label})" if self.label else self.path

    @property
    def anchor(self) -> str:
        """As Markdown's tools make it from the heading."""
        return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", self.title).strip().lower())


def blocks(which: str) -> Block:
    """The whole configuration of ``agent`` or ``ca``."""
    module, _, name = MODELS[which].partition(":")
    return _block(getattr(importlib.import_module(module), name), "", "", frozenset())


def _block(model: type[BaseModel], path: str, label: str, above: frozenset[type]) -> Block:
    summary = " ".join(inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].split())
    summary = summary.replace("``", "`")
    home = _HOMES.get(model.__name__, path)
    if home != path:
        return Block(path=path, label=label, summary=summary, entries=(), same_as=home)
    entries = tuple(
        _entry(model, name, path=path, label=label, above=above | {model})
        for name in model.model_fields
    )
    return Block(path=path, label=label, summary=summary, entries=entries)


def _entry(
    model: type[BaseModel], name: str, *, path: str, label: str, above: frozenset[type]
) -> Entry:
    field = model.model_fields[name]
    meaning = field.description or _attribute(model, name)
    if not meaning and name == "kind":
        meaning = "Selects this form."
    name = field.alias or name
    whole = f"{path}.{name}" if path else name
    inner = [part for part in _models(field.annotation) if part not in above]
    many = _many(field.annotation) if inner else ""
    target = f"{whole}{'[]' if many == 'list' else '.NAME' if many == 'mapping' else ''}"
    labels = {part: _label(part) if len(inner) > 1 else "" for part in inner}
    found = tuple(_block(part, target, labels[part], above) for part in inner)
    default = PydanticUndefined
    if not field.is_required():
        default = field.get_default(call_default_factory=True)
    return Entry(
        path=whole,
        name=name,
        type=_type(field.annotation, tuple(field.metadata), found, many),
        is_required=field.is_required(),
        default=default,
        meaning=" ".join(meaning.split()),
        example=_example(whole, label, field),
        blocks=found,
        many=many,
    )


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        # What only a module of somebody's own can be written for has no example here.
        return [annotation] if getattr(annotation, "in_reference", True) else []
    return [model for part in typing.get_args(annotation) for model in _models(part)]


def _many(annotation: Any) -> typing.Literal["", "list", "mapping"]:
    origin = typing.get_origin(annotation)
    if origin is dict:
        return "mapping"
    if origin in {tuple, list, frozenset, set}:
        return "list"
    return next((found for part in typing.get_args(annotation) if (found := _many(part))), "")


def _label(model: type[BaseModel]) -> str:
    if model.__name__ in _LABELS:
        return _LABELS[model.__name__]
    for name in ("kind", "tls", "type", "profile"):
        field = model.model_fields.get(name)
        values = typing.get_args(field.annotation) if field is not None else ()
        if len(values) == 1 and isinstance(values[0], str):
            return f"{name}: {values[0]}"
    return ""


def _attribute(model: type[BaseModel], name: str) -> str:
    """What the ``Attributes:`` of a model's docstring (or of a base's) say of a field."""
    for kind in model.__mro__:
        lines = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2].splitlines()
        for index, line in enumerate(lines):
            if line.strip().startswith(f"{name}:"):
                found = [line.strip().removeprefix(f"{name}:").strip()]
                for rest in lines[index + 1 :]:
                    if not rest.startswith("     "):
                        break
                    found.append(rest.strip())
                text = " ".join(found).replace("``", "`")
                return text[:1].upper() + text[1:]
    return ""


def _example(path: str, label: str, field: Any) -> Any:
    words = path.replace("[]", "").split(".")
    form = "rule" if label == "a rule" else label.partition(": ")[2]
    full = [*words[:-1], form, words[-1]] if form else words
    for names in (full, words):
        for start in range(len(names)):
            if (found := ".".join(names[start:])) in EXAMPLES:
                return EXAMPLES[found]
    words_of_type = _words(field.annotation, tuple(field.metadata))
    for mark, value in (
        ("#duration", "1h"),
        ("#size", "1MiB"),
        ("#path", f"/etc/attested-sds/{words[-1]}"),
        ("#spiffe-id", "spiffe://example.org/name"),
        ("true or false", False),
        ("number", 1),
        ("mapping", {}),
    ):
        if mark in words_of_type:
            return [value] if words_of_type.startswith("list") else value
    choice = re.match(r"`([^`]+)`", words_of_type)
    return choice[1] if choice else ["text"] if words_of_type.startswith("list") else "text"


# --- types in words -------------------------------------------------------------------------------


def _type(annotation: Any, metadata: tuple[Any, ...], inner: tuple[Block, ...], many: str) -> str:
    """A type in words, as Markdown."""
    if inner:
        links = " or ".join(f"[`{block.title}`](#{block.anchor})" for block in inner)
        words = [w for part in typing.get_args(annotation) if (w := _scalar(part))]
        what = {"list": "list of blocks", "mapping": "mapping of names to blocks"}
        return " or ".join([*words, f"{what.get(many, 'block')} {links}"])
    return _words(annotation, metadata)


def _scalar(annotation: Any) -> str:
    """In words, where a block may also be a word (``tls: attested``)."""
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(annotation))
    return ""


def _words(  # noqa: PLR0911  one return for each form of a type
    annotation: Any, metadata: tuple[Any, ...] = ()
) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _words(arguments[0], (*arguments[1:], *metadata))
    if origin is typing.Literal:
        return _one_of(arguments)
    if origin in {tuple, list, frozenset, set}:
        return f"list of {_plural(_words(arguments[0]))}{_bounds(metadata)}"
    if origin is dict:
        return f"mapping of {_plural(_words(arguments[0]))} to {_plural(_words(arguments[1]))}"
    if arguments:
        parts = [part for part in arguments if part is not type(None)]
        return " or ".join(dict.fromkeys(_words(part, metadata) for part in parts))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return _one_of([member.value for member in annotation])
    return _simple(annotation, _flat(metadata))


def _flat(metadata: tuple[Any, ...]) -> tuple[Any, ...]:
    """With what a ``Field()`` inside ``Annotated`` says."""
    found: list[Any] = []
    for one in metadata:
        found += [one, *getattr(one, "metadata", ())]
    return tuple(found)


def _one_of(values: typing.Iterable[Any]) -> str:
    *first, last = [f"`{value}`" for value in values]
    return f"{', '.join(first)} or {last}" if first else last


def _simple(annotation: Any, metadata: tuple[Any, ...]) -> str:
    functions = {getattr(getattr(m, "func", None), "__name__", "") for m in metadata}
    schema = next((m.json_schema for m in metadata if hasattr(m, "json_schema")), None) or {}
    pattern = next((p for m in metadata if (p := getattr(m, "pattern", None))), "") or ""
    if annotation is Glob:
        kind = "SPIFFE ID" if "spiffe" in str(schema.get("pattern")) else "DNS name"
        return f"[pattern](configuration.md#pattern) of a {kind}"
    if "0-9a-f" in pattern:
        digits = re.findall(r"\{(\d+)\}", pattern)
        size = f" of {' or '.join(digits)} digits" if digits else ""
        return f"[hexadecimal](configuration.md#hexadecimal){size}"
    for function, words in (
        ("_size", "[size](configuration.md#size)"),
        ("_mode", "[mode](configuration.md#mode)"),
    ):
        if function in functions:
            return words
    if annotation in {int, float}:
        return f"number{_bounds(metadata)}"
    return _NAMES.get(getattr(annotation, "__name__", ""), "text")


def _plural(words: str) -> str:
    for one, several in (
        ("text", "texts"),
        ("number", "numbers"),
        ("[path]", "[paths]"),
        ("[pattern]", "[patterns]"),
        ("[SPIFFE ID]", "[SPIFFE IDs]"),
        (
            "[hexadecimal](configuration.md#hexadecimal)",
            "[hexadecimal](configuration.md#hexadecimal) texts",
        ),
    ):
        if words.startswith(one):
            return several + words.removeprefix(one)
    return words


def _bounds(metadata: tuple[Any, ...]) -> str:
    def bound(*names: str) -> Any:
        return next(
            (v for m in metadata for n in names if (v := getattr(m, n, None)) is not None), None
        )

    least, most = bound("ge", "min_length"), bound("le", "max_length")
    if bound("gt") is not None:
        return f" above {bound('gt')}" + (f", at most {most}" if most is not None else "")
    if least is not None and most is not None:
        return f", exactly {least}" if least == most else f", {least} to {most}"
    if least:
        return f", at least {least}"
    return f", at most {most}" if most is not None else ""
