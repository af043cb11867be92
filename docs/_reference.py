"""The reference, made from the code: command line, configuration, metrics, errors.

Invariant: nothing here is written twice; a command, field, metric or error that the code has and
this file does not know appears all the same.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import typing
from collections import defaultdict
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import click
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import sds.errors
from sds.cli import main
from sds.clock import SystemClock
from sds.errors import SdsError
from sds.operations.metrics.families import AgentFamilies, AuthorityFamilies, ProcessFamilies
from sds.operations.metrics.store import MeteredStore, StoreCollector
from sds.reasons import REASONS

ROOT: Final = Path(__file__).resolve().parents[1]
CONFIGURATIONS: Final = (
    ("The agent: `sds agent --config FILE`", "sds.agent.config:AgentConfig"),
    ("The authority: `sds ca --config FILE`", "sds.ca.config:AuthorityConfig"),
)


# --- command line ---------------------------------------------------------------------------------


def command_line() -> str:
    """Every command with its arguments and options."""
    lines = [
        "# Command line",
        "",
        "Exit status: 0 done, 1 refused or failed, 2 usage or configuration. Every command has",
        "`--help`. Shell completion: [see below](#shell-completion).",
        "",
    ]
    with click.Context(main, info_name="sds") as context:
        for path, command, inner in _commands(main, context):
            lines += [f"## {path}" if path.count(" ") < 2 else f"### {path}", ""]
            usage = inner.get_usage().removeprefix("Usage: ")
            lines += ["```", " ".join(usage.split()), "```", ""]
            lines += [_text(command.help or ""), ""]
            if rows := [_parameter(p, inner) for p in command.params if not _hidden(p)]:
                lines += ["| | | |", "| --- | --- | --- |", *rows, ""]
    lines += [
        "## Shell completion",
        "",
        "```console",
        'eval "$(sds completion bash)"      # also zsh; fish: sds completion fish | source',
        "```",
        "",
    ]
    return "\n".join(lines)


def _commands(
    command: click.Command, context: click.Context, path: str = "sds"
) -> list[tuple[str, click.Command, click.Context]]:
    found = [(path, command, context)]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is None or child.hidden:
                continue
            inner = click.Context(child, info_name=name, parent=context)
            found += _commands(child, inner, f"{path} {name}")
    return found


def _hidden(parameter: click.Parameter) -> bool:
    return getattr(parameter, "hidden", False) or parameter.name == "help"


def _parameter(parameter: click.Parameter, context: click.Context) -> str:
    if isinstance(parameter, click.Option):
        record = parameter.get_help_record(context)
        name, text = record if record is not None else ("", "")
        return f"| `{_cell(name)}` | {_cell(text)} | {'required' if parameter.required else ''} |"
    needed = "required" if parameter.required else ""
    return f"| `{parameter.make_metavar(context)}` | argument | {needed} |"


def _text(text: str) -> str:
    """A command's help as Markdown: paragraphs that click must not wrap stay as they are."""
    paragraphs = []
    for paragraph in text.replace("\f", "").strip().split("\n\n"):
        if paragraph.startswith("\b"):
            paragraphs.append(f"```\n{paragraph[1:].strip(chr(10))}\n```")
        else:
            paragraphs.append(" ".join(paragraph.split()))
    return "\n\n".join(paragraphs)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# --- configuration --------------------------------------------------------------------------------


def configuration() -> str:
    """Every field of every configuration file."""
    lines = [
        "# Configuration",
        "",
        "YAML, read strictly: an unknown or repeated field is refused with its path and the",
        "nearest right name. Durations are written `10s`, `5m`, `1h30m`; sizes `64KiB`.",
        "",
    ]
    for title, target in CONFIGURATIONS:
        module, _, name = target.partition(":")
        model = getattr(importlib.import_module(module), name)
        lines += [f"## {title}", "", _first(model), ""]
        lines += ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
        lines += _fields(model, "", frozenset())
        lines.append("")
    return "\n".join(lines)


def _fields(model: type[BaseModel], prefix: str, above: frozenset[type]) -> list[str]:
    rows: list[str] = []
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        inner = _models(field.annotation)
        kind = "section" if inner else _type(field.annotation)
        if inner and _is_sequence(field.annotation):
            kind, path = "list of sections", f"{path}[]"
        meaning = field.description or _attribute(model, name)
        if not meaning and name == "kind":
            meaning = "Which form this section has."
        rows.append(f"| `{path}` | {_cell(kind)} | {_default(field)} | {_cell(meaning)} |")
        for part in inner:
            if part not in above:
                label = _discriminator(part)
                rows += _fields(part, f"{path}{label}.", above | {part})
    return rows


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
                text = _markdown(" ".join(found))
                return text[:1].upper() + text[1:]
    return ""


def _discriminator(model: type[BaseModel]) -> str:
    """``(kind: x)`` for one of several forms of a section."""
    for name in ("kind", "tls", "type"):
        field = model.model_fields.get(name)
        values = typing.get_args(field.annotation) if field is not None else ()
        if len(values) == 1 and isinstance(values[0], str):
            return f"({values[0]})"
    return ""


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models(part)]


def _is_sequence(annotation: Any) -> bool:
    if typing.get_origin(annotation) in {tuple, list, frozenset, set}:
        return True
    return any(_is_sequence(part) for part in typing.get_args(annotation))


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin in {tuple, list, frozenset, set}:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"{_type(arguments[0])} to {_type(arguments[1])}"
    if arguments:
        return " or ".join(_type(part) for part in arguments if part is not type(None))
    names = {"str": "text", "int": "number", "float": "number", "bool": "true or false"}
    names |= {"timedelta": "duration", "bytes": "hexadecimal", "SpiffeId": "SPIFFE ID"}
    name = getattr(annotation, "__name__", str(annotation))
    return names.get(name, name)


def _default(field: Any) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined or isinstance(value, BaseModel) or value == ():
        return ""
    if isinstance(value, timedelta):
        return f"`{_duration(value)}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


def _duration(value: timedelta) -> str:
    seconds = value.total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if seconds >= size and seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds * 1000)}ms"


def _first(thing: Any) -> str:
    return " ".join((thing.__doc__ or "").strip().split("\n\n")[0].split())


# --- metrics --------------------------------------------------------------------------------------


def metrics() -> str:
    """Every metric family."""
    lines = [
        "# Metrics",
        "",
        "Names are stable. Counters end in `_total`, histograms in `_bucket`, `_sum` and `_count`.",
        "How to scrape them, and the alerts: [operations](../operations.md).",
        "",
    ]
    for title, registry in _registries().items():
        lines += [f"## {title}", "", "| name | kind | labels | meaning |"]
        lines.append("| --- | --- | --- | --- |")
        for family in sorted(registry.collect(), key=lambda f: f.name):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = ", ".join(f"`{label}`" for label in _labels(registry, family))
            lines.append(f"| `{name}` | {family.type} | {labels} | {_cell(family.documentation)} |")
        lines.append("")
    return "\n".join(lines)


def _registries() -> dict[str, CollectorRegistry]:
    both, agent, authority = CollectorRegistry(), CollectorRegistry(), CollectorRegistry()
    ProcessFamilies(both, component="agent")
    StoreCollector(MeteredStore(AgentFamilies(agent)), SystemClock(), agent)
    AuthorityFamilies(authority)
    return {"Agent and authority": both, "Agent": agent, "Authority": authority}


def _labels(registry: CollectorRegistry, family: Any) -> list[str]:
    for collector in list(registry._collector_to_names):  # noqa: SLF001  no public way to labels
        if getattr(collector, "_name", None) == family.name:
            return list(getattr(collector, "_labelnames", ()))
    return list(getattr(family, "_labelnames", ()))


# --- errors ---------------------------------------------------------------------------------------


def messages() -> dict[str, list[tuple[str, str]]]:
    """Reason -> (message, advice) of every place that raises it; ``…`` stands for values."""
    own = {kind.__name__: kind.reason for kind in vars(sds.errors).values() if _is_error(kind)}
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for path in sorted((ROOT / "sds").rglob("*.py")):
        if "_proto" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            text = _template(node.args[0])
            if name in own and text:
                given = {k.arg: _template(k.value) for k in node.keywords}
                entry = (text, given.get("advice", ""))
                reason = given.get("reason") or own[name]
                if entry not in found[reason]:
                    found[reason].append(entry)
    return found


def _is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, SdsError)


def _template(node: ast.expr) -> str:
    """The text of a string expression; ``…`` for each value in it."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
        )
    if isinstance(node, ast.IfExp):
        return " / ".join(filter(None, (_template(node.body), _template(node.orelse))))
    if isinstance(node, ast.BinOp):
        return _template(node.left) + _template(node.right)
    return ""


def errors() -> str:
    """The index of errors: reason, cure, and every message."""
    said = messages()
    lines = [
        "# Errors",
        "",
        "Every error has a stable *reason*, which logs (`reason`), metrics and answers on the wire",
        "carry. Under each reason: what to do, and the messages that carry it (`…` stands for a",
        "value). *Retried* errors pass by themselves, and the agent tries again. The others wait",
        "for a person, and the agent tries again at a slower pace.",
        "",
    ]
    for reason, row in sorted(REASONS.items()):
        lines += [f"## {reason}", "", f"**Cure.** {row.cure}", ""]
        if row.retriable:
            lines += ["Retried.", ""]
        if entries := said.get(reason):
            lines += ["| message | what to do |", "| --- | --- |"]
            lines += [f"| {_cell(_plain(m))} | {_cell(_plain(a))} |" for m, a in entries]
            lines.append("")
    return "\n".join(lines)


def _markdown(text: str) -> str:
    return text.replace("``", "`")


def _plain(text: str) -> str:
    """A message as text, never as Markdown."""
    for character in "\\`*_{}[]#":
        text = text.replace(character, "\\" + character)
    return text
