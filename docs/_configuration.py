"""The configuration's reference: a page and a complete, commented file for each daemon.

Owns how blocks (:mod:`_blocks`) become Markdown and YAML. In a YAML file, a line that begins with
``#`` and a letter is configuration that is switched off; ``# `` begins prose.
"""

from __future__ import annotations

import enum
import re
import textwrap
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import yaml
from _blocks import blocks
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from sds.rules.duration import format_duration

if TYPE_CHECKING:
    from _blocks import Block, Entry

TITLES: Final = {
    "admission": (
        "Configuration of admission at the runtime",
        "sds admission serve --config FILE",
        "admission.yaml",
    ),
    "agent": ("Configuration of the agent", "sds agent --config FILE", "agent.yaml"),
    "ca": ("Configuration of the authority", "sds ca --config FILE", "ca.yaml"),
}
WIDTH: Final = 76
_SHOWN: Final = frozenset({"health", "metrics", "node", "status_page"})
"""Blocks that may be left out, and that the files contain all the same."""
_CHOSEN: Final = ("policy.file", "policy.threshold", "bundles[].endpoint", "signer.verification")
"""Fields without a default of which their block needs one, or that most people need."""
_FILLED: Final = ("measurements", "identities[].spiffe_ids")
"""Lists that are empty by default, and that make no sense so."""

# --- pages ----------------------------------------------------------------------------------------


def page(which: str) -> str:
    """The page of one daemon's configuration: a section for each block."""
    title, command, file = TITLES[which]
    lines = [
        f"# {title}",
        "",
        f"`{command}` reads one YAML file. [`{file}`]({file}) is a complete file with comments.",
        "[Configuration](configuration.md) explains the types and how YAML is read.",
        "",
        "## Top level",
        "",
    ]
    whole = blocks(which)
    lines += _fields(whole)
    for block in _inside(whole):
        lines += [
            f"{'##' if '.' not in block.path else '###'} {block.title}",
            "",
            block.summary,
            "",
        ]
        if block.same_as:
            lines += [f"It has the fields of [`{block.same_as}`](#{block.same_as}).", ""]
        lines += _fields(block)
    return "\n".join(lines).rstrip() + "\n"


def _inside(block: Block) -> list[Block]:
    return [b for entry in block.entries for one in entry.blocks for b in (one, *_inside(one))]


def _fields(block: Block) -> list[str]:
    """A heading for each field, so that a search for its name finds it."""
    lines: list[str] = []
    for entry in block.entries:
        default = "**required**" if entry.is_required else _shown_default(entry)
        facts = " · ".join(filter(None, (entry.type, default)))
        lines += [f"#### {entry.name}", "", facts, ""]
        lines += [*paragraph(entry.meaning), ""]
    return lines


def paragraph(text: str, indent: str = "") -> list[str]:
    """Text within the width."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _shown_default(entry: Entry) -> str:
    value = plain(entry.default)
    if value is None or value in ([], {}) or (entry.blocks and not isinstance(value, str)):
        return ""
    if "#size" in entry.type and isinstance(value, int):
        value = _size(value)
    shown = ", ".join(str(part) for part in value) if isinstance(value, list) else value
    shown = {True: "true", False: "false"}.get(shown, shown) if isinstance(shown, bool) else shown
    return f"default `{shown}`"


def _size(value: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value % size == 0:
            return f"{value // size}{unit}"
    return str(value)


def plain(value: Any) -> Any:
    """A default as YAML has it."""
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return None
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(part) for part in value]
    if isinstance(value, dict):
        return {plain(name): plain(part) for name, part in value.items()}
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


# --- files ----------------------------------------------------------------------------------------


def file(which: str) -> str:
    """The complete, commented file of one daemon."""
    _, command, _ = TITLES[which]
    head = (
        f"Every field of the file that `{command}` reads, with its default where it has one. "
        "A line that begins with # and a letter is switched off: an alternative, or a field "
        "without a default. Change what is yours and leave out the rest: what is left out has "
        "its default. Made from the code: do not edit this file."
    )
    return "\n".join([*_comment(head, ""), "", *_yaml(blocks(which), "")]) + "\n"


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH - len(indent),
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _off(lines: list[str]) -> list[str]:
    return [f"#{line}" if line else "#" for line in lines]


def _indent(lines: list[str], by: str = "  ") -> list[str]:
    return [by + line if line else line for line in lines]


def _yaml(block: Block, indent: str) -> list[str]:
    lines: list[str] = []
    if block.same_as:
        lines += _comment(f"It has the fields of `{block.same_as}`.", indent)
    for entry in block.entries:
        lines += _comment(entry.meaning, indent)
        lines += _blocks_of(entry, indent) if entry.blocks else _leaf(entry)
        if not indent:
            lines.append("")
    return lines


def _leaf(entry: Entry) -> list[str]:
    value = plain(entry.default)
    on = entry.is_required or (entry.name == "kind" and value is None)
    if on or entry.path.endswith(_CHOSEN):
        return _pair(entry.name, entry.example)
    if value is None:
        return _off(_pair(entry.name, entry.example))
    if value == [] and entry.path.endswith(_FILLED):
        return _pair(entry.name, entry.example)
    if "#size" in entry.type and isinstance(value, int):
        value = _size(value)
    return _pair(entry.name, value)


def _blocks_of(entry: Entry, indent: str) -> list[str]:
    """A field that is a block, in its forms: the first is on, the others are off."""
    inside = [_yaml(block, indent + "  ") for block in entry.blocks]
    if entry.many:
        return _many_of(entry, inside)
    if isinstance(word := plain(entry.default), str):
        forms = [_pair(entry.name, word), *([f"{entry.name}:", *_indent(one)] for one in inside)]
        on = True
    else:
        forms = [_nested(entry.name, one) for one in inside]
        on = entry.is_required or entry.default is not None or entry.name in _SHOWN
        on |= entry.path.endswith(_CHOSEN)
    first, *others = forms
    lines = first if on else _off(first)
    for other in others:
        lines = [*lines, "# Or:", *_off(other)]
    return lines


def _nested(name: str, inside: list[str]) -> list[str]:
    if any(re.match(r" *[^ #]", line) for line in inside):
        return [f"{name}:", *_indent(inside)]
    prose = [line for line in inside if line.startswith("# ")]
    if prose == inside:
        return [*prose, f"{name}: {{}}"]
    return [f"{name}: {{}}", *_off([f"{name}:", *_indent([_on(line) for line in inside])])]


def _on(line: str) -> str:
    return re.sub(r"^( *)#(?=\S)", r"\1", line)


def _many_of(entry: Entry, inside: list[list[str]]) -> list[str]:
    """A list of blocks, or blocks by name."""
    if entry.many == "mapping":
        return [
            f"{entry.name}: {{}}",
            *_off([f"{entry.name}:", "  genoa:", *_indent(inside[0], "    ")]),
        ]
    items = []
    for one in inside:
        first = next(i for i, line in enumerate(one) if re.match(r"[^ #]", line))
        # The item's comment is above its dash.
        items += [*_indent(one[:first]), f"  - {one[first]}", *_indent(one[first + 1 :], "    ")]
    if entry.name in {"workloads", "identities"}:
        return [f"{entry.name}:", *items]
    return [f"{entry.name}: []", *_off([f"{entry.name}:", *items])]


def _pair(name: str, value: Any) -> list[str]:
    """``name: value``, within the width."""
    if isinstance(value, list) and any(isinstance(v, str) and len(v) > 64 for v in value):
        return [f"{name}:", *(line for v in value for line in _long("  - ", v))]
    if isinstance(value, str) and len(value) > 64:
        return _long(f"{name}: ", value)
    text = _inline(value)
    if len(text) > 60 and isinstance(value, list):
        return [
            f"{name}:",
            *(f"  - {yaml.safe_dump(v).strip().removesuffix('...').strip()}" for v in value),
        ]
    return [f"{name}: {text}"]


def _inline(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return text.strip().removesuffix("\n...").strip()


def _long(start: str, value: str) -> list[str]:
    """Text over two lines: in double quotes, a backslash joins them."""
    half = len(value) // 2
    return [f'{start}"{value[:half]}\\', f'{" " * len(start)} {value[half:]}"']
