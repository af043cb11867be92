import click
import pytest
from click.testing import CliRunner

import sds
from sds import cli
from sds.errors import ConfigurationError, SdsError


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
