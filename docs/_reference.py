"""The reference, made from the code: command line, configuration, metrics, errors, modules.

``python docs/_reference.py`` (`make reference`) writes it into ``docs/reference/``; a test keeps
what is there equal to the code. Invariant: nothing here is written twice; a command, field, metric
or error that the code has and this file does not know appears all the same.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import click
from prometheus_client import CollectorRegistry

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _configuration import file as yaml_file
from _configuration import page, paragraph

import sds.errors
import sds.reasons.authority
from sds.attestation.reference_values import ReferenceValues
from sds.cli import main
from sds.clock import SystemClock
from sds.errors import SdsError
from sds.operations.metrics.families import (
    AdmissionFamilies,
    AgentFamilies,
    AuthorityFamilies,
    ProcessFamilies,
)
from sds.operations.metrics.store import MeteredStore, StoreCollector
from sds.policy.document import json_schema
from sds.reasons import REASONS

ROOT: Final = Path(__file__).resolve().parents[1]
FOLDER: Final = ROOT / "docs" / "reference"
SCHEMAS: Final = {
    "policy.schema.json": json_schema,
    "reference-values.schema.json": ReferenceValues.model_json_schema,
}
"""JSON Schemas for editors, beside the pages."""


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
            for parameter in command.params:
                if not _hidden(parameter):
                    lines += _parameter(parameter, inner)
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


def _parameter(parameter: click.Parameter, context: click.Context) -> list[str]:
    needed = " · **required**" if parameter.required else ""
    if isinstance(parameter, click.Option):
        record = parameter.get_help_record(context)
        name, text = record if record is not None else ("", "")
        text = re.sub(r"(; |\[)required\]$", lambda m: "]" if m[1] == "; " else "", text).strip()
        text = re.sub(r"(\d+)<=x<=(\d+)", r"\1 to \2", text)
        text = re.sub(r"x>=(\d+)", r"\1 or more", text)
        return [f"- **`{name}`**{needed}", "", *paragraph(_angles(text), "    "), ""]
    return [f"- `{parameter.make_metavar(context)}` · argument{needed}", ""]


def _text(text: str) -> str:
    """A command's help as Markdown: paragraphs that click must not wrap stay as they are."""
    paragraphs = []
    for part in inspect.cleandoc(text.replace("\f", "")).split("\n\n"):
        if part.startswith("\b"):
            paragraphs.append(f"```\n{part[1:].strip(chr(10))}\n```")
        else:
            paragraphs.append("\n".join(paragraph(" ".join(part.split()))))
    return "\n\n".join(paragraphs)


def _angles(text: str) -> str:
    """Text whose ``<words>`` are not HTML; in code, Markdown keeps them as they are."""
    parts = " ".join(text.split()).split("`")
    return "`".join(p if i % 2 else p.replace("<", "\\<") for i, p in enumerate(parts))


# --- configuration --------------------------------------------------------------------------------


def configuration() -> str:
    """How configuration is read, the types of its fields, and where each file is explained."""
    return """\
# Configuration

The agent, the authority and the admission service each read one YAML file.

| file | fields | complete example |
| --- | --- | --- |
| `sds agent --config FILE` | [agent](agent.md) | [agent.yaml](agent.yaml) |
| `sds ca --config FILE` | [authority](ca.md) | [ca.yaml](ca.yaml) |
| `sds admission serve` | [admission](admission.md) | [admission.yaml](admission.yaml) |

`sds agent --config FILE --check-config` checks a file, and every file that it names, without
starting anything; so does `sds ca`. Run it as the daemon's user, who must be able to read them.
Signed policy is a document of its own: see [policy](../policy.md).

YAML is read strictly. An unknown or repeated field is refused; the message gives its path and the
nearest right name. Text without quotes has no character that only looks like a space or a quote,
such as a no-break space. A block that you leave out has its defaults.

## Types

### Duration

A number with a unit, `10s`, `5m`, `1h30m`, `2d`, or a bare number of seconds. It is above zero.

### Size

A number of bytes, `65536`, or one with a unit: `64KiB`, `4MiB`, `1GiB`.

### Path

A path of a file or directory. A relative path counts from the daemon's working directory, so prefer
absolute ones. Write the whole path: nothing replaces `~` or `$NAME`, and a path with them is
refused (`./~name` is a file of that name).

### Mode

Permission bits in octal, in quotes: `"0600"`.

### Hexadecimal

Lower-case hexadecimal digits, two for each byte. Put a value of digits only in quotes.

### SPIFFE ID

`spiffe://TRUST-DOMAIN/PATH`, such as `spiffe://example.org/ns/shop/sa/web`.

### Pattern

A SPIFFE ID or DNS name with stars. `*` stands for one segment or label, `web-*` for one that begins
with `web-`, and `**` for one or more: at the end of a SPIFFE ID, at the start of a DNS name. See
[patterns](../policy.md#patterns).

### Template

Text with fields in braces, such as `spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}`.
[Rules](../kubernetes.md#rules) lists the fields.
"""


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
        lines += [f"## {title}", ""]
        for family in sorted(registry.collect(), key=lambda f: f.name):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = ", ".join(f"`{label}`" for label in _labels(registry, family))
            by = f" · by {labels}" if labels else ""
            lines += [f"#### {name}", "", f"{family.type}{by}", ""]
            lines += [*paragraph(_angles(family.documentation)), ""]
    return "\n".join(lines)


def _registries() -> dict[str, CollectorRegistry]:
    both, agent, authority = CollectorRegistry(), CollectorRegistry(), CollectorRegistry()
    admission = CollectorRegistry()
    ProcessFamilies(both, component="agent")
    StoreCollector(MeteredStore(AgentFamilies(agent)), SystemClock(), agent)
    AuthorityFamilies(authority)
    AdmissionFamilies(admission)
    return {
        "Agent, authority and admission": both,
        "Agent": agent,
        "Authority": authority,
        "Admission": admission,
    }


def _labels(registry: CollectorRegistry, family: Any) -> list[str]:
    for collector in list(registry._collector_to_names):  # noqa: SLF001  no public way to labels
        if getattr(collector, "_name", None) == family.name:
            return list(getattr(collector, "_labelnames", ()))
    return list(getattr(family, "_labelnames", ()))


# --- errors ---------------------------------------------------------------------------------------


@functools.cache
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


_NAMED: Final = {
    name: value
    for name, value in vars(sds.reasons.authority).items()
    if name.isupper() and isinstance(value, str)
}


def _template(node: ast.expr) -> str:
    """The text of a string expression; ``…`` for each value in it."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.Name):  # a reason that several modules use
        return _NAMED.get(node.id, "")
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
            for message, advice in entries:
                lines += [_plain(f"- {message}"), ""]
                lines += [*paragraph(_plain(advice), "    "), ""] if advice else []
    return "\n".join(lines)


def _plain(text: str) -> str:
    """A message as text, never as Markdown."""
    text = " ".join(text.split())
    for character in "\\`*_{}[]#<":
        text = text.replace(character, "\\" + character)
    return text


# --- files ----------------------------------------------------------------------------------------


def decisions() -> str:
    """The index of decisions, from the heading and state of each page."""
    folder = ROOT / "docs" / "adr"
    intro = (folder / "index.md").read_text(encoding="utf-8").partition("| number |")[0]
    rows = ["| number | decision | state |", "| --- | --- | --- |"]
    for path in sorted(folder.glob("[0-9]*.md")):
        found = re.match(
            r"# (\d{4}): (.+)\n\n\*\*State\.\*\* ((?:.+\n)+)", path.read_text(encoding="utf-8")
        )
        if found is None:
            raise SystemExit(f"{path} needs a heading `# NNNN: title` and a line `**State.** …`")
        number, title, state = found.groups()
        rows.append(f"| [{number}]({path.name}) | {title} | {' '.join(state.split())} |")
    return intro + "\n".join(rows) + "\n"


def modules() -> str:
    """Every package and module of the program, with the first line of its docstring."""
    lines = [
        "# Modules",
        "",
        "What each module owns, in the first line of its docstring; the rest of the docstring says",
        "which invariant it keeps. `CONTRIBUTING.md` says where common changes go.",
        "",
    ]
    top = ROOT / "sds"
    for package in sorted(path.parent for path in top.rglob("__init__.py")):
        name = package.relative_to(ROOT).as_posix()
        if "_proto" in package.parts:  # generated
            continue
        lines += [f"## `{name}/`", "", _first_line(package / "__init__.py"), ""]
        lines += ["| module | what it owns |", "| --- | --- |"]
        lines += [
            f"| `{path.name}` | {_first_line(path).replace('|', chr(92) + '|')} |"
            for path in sorted(package.glob("*.py"))
            if path.name != "__init__.py"
        ]
        lines.append("")
    return "\n".join(lines)


def _first_line(path: Path) -> str:
    """The first line of a module's docstring, as Markdown: ``code`` of reST becomes `code`."""
    text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    return re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text).replace("``", "`")


def files() -> dict[str, str]:
    """Every file of the reference, by its name in ``docs/reference``."""
    return {
        "configuration.md": configuration(),
        "admission.md": page("admission"),
        "admission.yaml": yaml_file("admission"),
        "agent.md": page("agent"),
        "agent.yaml": yaml_file("agent"),
        "ca.md": page("ca"),
        "ca.yaml": yaml_file("ca"),
        "cli.md": command_line(),
        "metrics.md": metrics(),
        "errors.md": errors(),
        "modules.md": modules(),
    }


def write() -> None:
    """Write them, and remove what is no longer one of them."""
    FOLDER.mkdir(exist_ok=True)
    made = files()
    for old in FOLDER.iterdir():
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    (ROOT / "docs" / "adr" / "index.md").write_text(decisions(), encoding="utf-8")
    for name, schema in SCHEMAS.items():
        text = json.dumps(schema(), indent=2)
        (FOLDER.parent / name).write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    write()
