"""The command ``sds``: the only place that exits."""

from __future__ import annotations

import click

import sds


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sds.__version__, prog_name="sds")
def main() -> None:
    """A node-local secret discovery service for Envoy."""
