from __future__ import annotations

from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

import sds
from sds import cli
from sds.errors import ConfigurationError, SdsError

if TYPE_CHECKING:
    from collections.abc import Iterator


@click.command()
def refused() -> None:
    raise SdsError("it was refused", advice="do better")


@click.command()
def misconfigured() -> None:
    raise ConfigurationError("line 3 is wrong")


@pytest.mark.parametrize(
    ("name", "status", "text"),
    [
        ("refused", 1, "sds: it was refused (do better)\n"),
        ("misconfigured", 2, "sds: line 3 is wrong\n"),
    ],
)
def test_our_errors_become_one_line_and_a_status(
    monkeypatch: pytest.MonkeyPatch, name: str, status: int, text: str
) -> None:
    monkeypatch.setitem(cli.COMMANDS, name, f"{__name__}:{name}")
    result = CliRunner().invoke(cli.main, [name])
    assert (result.exit_code, result.stderr) == (status, text)


def test_version_and_help() -> None:
    assert sds.__version__ in CliRunner().invoke(cli.main, ["--version"]).output
    assert CliRunner().invoke(cli.main, ["--help"]).exit_code == 0


def test_every_listed_command_loads() -> None:
    with click.Context(cli.main) as context:
        for name in cli.main.list_commands(context):
            assert cli.main.get_command(context, name) is not None, name


def test_an_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(cli.main, ["nonsense"]).exit_code == 2


def helps(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """The help of every command and of every option."""
    with click.Context(command, info_name=" ".join(("sds", *path))) as context:
        yield " ".join(path), command.get_help(context)
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                assert child is not None
                yield from helps(child, (*path, name))


def test_every_help_can_be_read() -> None:
    found = dict(helps(cli.main))
    assert len(found) > 20
    for path, text in found.items():
        assert "\\b" not in text, path
        assert "\b" not in text, path


def commands(command: click.Command) -> Iterator[click.Command]:
    """Every command and group."""
    yield command
    if isinstance(command, click.Group):
        with click.Context(command) as context:
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                assert child is not None
                yield from commands(child)


def test_every_option_says_in_a_sentence_what_it_is_for() -> None:
    for command in commands(cli.main):
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                said = (parameter.help or "").partition("  [default:")[0]
                where = (command.name, parameter.name, said)
                assert said.endswith("."), where
                assert len(said.split()) > 2, where
                assert said[0].isupper() or said.split()[0].endswith(":"), where


def test_every_command_has_a_line_in_the_list() -> None:
    assert set(cli.SUMMARIES) == set(cli.COMMANDS)
    shown = CliRunner().invoke(cli.main, ["--help"]).output
    for name, summary in cli.SUMMARIES.items():
        assert f"{name} " in shown
        assert len(summary) <= 64, name  # one line on 80 columns
