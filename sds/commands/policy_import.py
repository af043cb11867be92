"""Runs ``sds policy import``, which begins a policy from another system's.

Owns the command line only; :mod:`sds.policy.istio` decides what Istio's manifests mean.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click
import yaml

from sds.commands.output import write_output
from sds.commands.policy_keys import DAYS, EPOCH, PATH, trust_domain_of, utc_now
from sds.errors import ConfigurationError
from sds.files import is_taken
from sds.policy.istio.conversion import convert
from sds.policy.istio.manifests import read_manifests
from sds.policy.template import template
from sds.policy.yaml_document import parse_source
from sds.printable import printable

if TYPE_CHECKING:
    from pathlib import Path

    from sds.policy.istio.conversion import Conversion


@click.group("import")
def import_() -> None:
    """Begin a policy from what another system has."""


@import_.command("istio")
@click.argument("files", nargs=-1, required=True, type=PATH, metavar="FILE…")
@click.option(
    "--trust-domain", default="cluster.local", show_default=True, help="Trust domain of the mesh."
)
@click.option(
    "--root-namespace", default="istio-system", show_default=True, help="The mesh's root namespace."
)
@EPOCH
@DAYS
@click.option(
    "--partial", is_flag=True, help="Write what can be expressed, which allows less than Istio."
)
@click.option("--out", type=PATH, help="File to write.  [default: standard output]")
@click.pass_context
def istio(
    context: click.Context,
    *,
    files: tuple[Path, ...],
    trust_domain: str,
    root_namespace: str,
    epoch: int,
    days: int,
    partial: bool,
    out: Path | None,
) -> None:
    """Read AuthorizationPolicy and PeerAuthentication manifests, and write a policy document.

    Give the manifests of the workloads too (Deployment, Pod, …): rules name service accounts, and
    selectors name labels. The document never allows more than Istio does. The command prints what
    it cannot express, by file and line. If the document allows less for that reason, the exit
    status is 1, and nothing is written without --partial.
    """
    domain = trust_domain_of(trust_domain)
    if out is not None and is_taken(out):
        raise ConfigurationError(f"{out} exists already", advice="choose another name")
    found = convert(read_manifests(files), trust_domain=domain, root_namespace=root_namespace)
    for finding in found.findings:
        text = printable(str(finding))
        click.echo(f"{'narrower' if finding.narrows else 'note'}: {text}", err=True)
    narrows = any(finding.narrows for finding in found.findings)
    if narrows and not partial:
        click.echo("nothing is written: --partial writes what can be expressed", err=True)
        context.exit(1)
    start = utc_now().replace(microsecond=0)
    text = template(domain, epoch=epoch, not_before=start, not_after=start + timedelta(days=days))
    document = text.replace("\nallow: []\n", "\n" + _allow(found), 1)
    parse_source(document.encode(), what="the document")
    if out is None:
        click.echo(document, nl=False)
    else:
        write_output(out, document.encode())
        click.echo(
            f"{out}: {len(found.allow)} allow rules; look at it, then `sds policy lint {out}`"
        )
    if narrows:
        context.exit(1)


def _allow(found: Conversion) -> str:
    # A name in a manifest may have any character; it must not end the comment.
    comments = [
        f"# not said: {printable(str(finding))}\n" for finding in found.findings if finding.narrows
    ]
    rules = yaml.safe_dump({"allow": found.allow}, sort_keys=False, width=100, allow_unicode=True)
    return "".join(comments) + rules
