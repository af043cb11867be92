"""Runs ``sds policy``: write, sign, check and query policy.

Owns the group and the commands that need no key: new, lint, diff, explain, test, schema. Those that
read take a YAML file, a directory of YAML files or a signed file. They do not check signatures, and
say so where it matters (``verify`` does). Invariant: no text of a policy forges or hides a line of
the output, because people read it before they sign.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from sds.attestation.evidence import Claims, EvidenceKind
from sds.commands.options import MOMENT, SPIFFE_ID, refuse_idle, written
from sds.commands.output import write_output
from sds.commands.policy_import import import_
from sds.commands.policy_keys import (
    DAYS,
    EPOCH,
    OUTPUT,
    PATH,
    keygen,
    read_document,
    sign,
    trust_domain_of,
    utc_now,
    verify,
)
from sds.commands.policy_pod import pod
from sds.errors import ConfigurationError
from sds.files import is_taken
from sds.policy import cases, explanation
from sds.policy.difference import differences
from sds.policy.document import json_schema
from sds.policy.lint import errors, warnings
from sds.policy.requests import Request
from sds.policy.template import template
from sds.printable import printable
from sds.settings import yamlfile
from sds.workload.entitlement import Selector
from sds.workload.facts import Facts
from sds.workload.mapping import check_selector_type

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from sds.identity import SpiffeId

_EPILOGUE: Final = "docs/policy.md shows the whole way of a change, from the edit to its effect."
_CASES_BYTES: Final = 4 * 1024 * 1024


@click.group("policy", epilog=_EPILOGUE)
def policy() -> None:
    """Write, sign, check and explain policies."""


policy.add_command(keygen)
policy.add_command(sign)
policy.add_command(verify)
policy.add_command(import_)
policy.add_command(pod)


@policy.command("new")
@click.option("--trust-domain", required=True, help="The trust domain that it is for.")
@EPOCH
@DAYS
@click.option("--out", type=PATH, help="File to write.  [default: standard output]")
def new(trust_domain: str, epoch: int, days: int, out: Path | None) -> None:
    """Begin a policy: a commented document that allows nothing yet."""
    domain = trust_domain_of(trust_domain)
    start = utc_now().replace(microsecond=0)
    text = template(domain, epoch=epoch, not_before=start, not_after=start + timedelta(days=days))
    if out is None:
        click.echo(text, nl=False)
        return
    if is_taken(out):
        raise ConfigurationError(f"{out} exists already", advice="choose another name")
    write_output(out, text.encode())
    click.echo(f"{out}: edit it, then `sds policy lint {out}`")


@policy.command("lint")
@click.argument("path", metavar="POLICY", type=PATH)
@click.option("--at", "moment", type=MOMENT, help="The time of the check.  [default: now]")
@click.option("--strict", is_flag=True, help="Exit with status 1 if there is a warning.")
@click.pass_context
def lint(context: click.Context, path: Path, moment: datetime | None, *, strict: bool) -> None:
    """Check a document, and name what is allowed but probably not meant.

    Exit status 1: there is an error, or with --strict a warning.
    """
    document = read_document(path)
    wrong = errors(document)
    for error in wrong:
        click.echo(printable(f"error: {error}"))
    found = warnings(document, now=moment or utc_now())
    for warning in found:
        click.echo(printable(f"warning: {warning}"))
    click.echo(
        f"{path}: epoch {document.epoch} of {document.trust_domain}, {len(document.nodes)} node "
        f"groups, {len(document.workloads)} workload rules, {len(document.allow)} allow rules, "
        f"{len(wrong)} errors, {len(found)} warnings"
    )
    if wrong or (strict and found):
        context.exit(1)


@policy.command("diff")
@click.argument("old", type=PATH)
@click.argument("new", type=PATH)
@OUTPUT
def diff(old: Path, new: Path, output: str) -> None:
    """Say in words what changes from OLD to NEW."""
    lines = differences(read_document(old), read_document(new))
    if output == "json":
        click.echo(json.dumps({"changes": lines}))
        return
    for line in lines or ["nothing that is enforced changes"]:
        click.echo(printable(line))


@policy.command("explain")
@click.argument("path", metavar="SIGNED", type=PATH)
@click.option("--from", "source", type=SPIFFE_ID, help="Who opens the connection.")
@click.option("--to", "target", help="To whom: a SPIFFE ID, or the name of a service.")
@click.option("--method", help="HTTP method of a request of --from to --to.")
@click.option("--path", "url_path", help="Path of that request, as it is sent.")
@click.option("--host", help="Host (:authority) of that request.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of --to's listener.")
@click.option(
    "--caller",
    "selectors",
    multiple=True,
    metavar="TYPE=VALUE",
    help="A fact about the workload (k8s:ns=shop); may be repeated.",
)
@click.option("--service", "services", multiple=True, help="Service of the pod: namespace/name.")
@click.option("--measurement", help="Launch measurement (or node name) of a node that asks.")
@click.option(
    "--kind",
    type=click.Choice([kind.value for kind in EvidenceKind.all()]),
    default=EvidenceKind.SEV_SNP.value,
    show_default=True,
    help="Kind of that node's evidence.",
)
@click.option("--claim", "claims", multiple=True, metavar="NAME=VALUE", help="Claim of that node.")
@click.option("--identity", type=SPIFFE_ID, help="The name that is asked for.")
@click.option("--dns-name", "dns_names", multiple=True, help="DNS name that is asked for.")
@OUTPUT
@click.pass_context
def explain(
    context: click.Context,
    *,
    path: Path,
    source: SpiffeId | None,
    target: str | None,
    method: str | None,
    url_path: str | None,
    host: str | None,
    port: int | None,
    selectors: tuple[str, ...],
    services: tuple[str, ...],
    measurement: str | None,
    kind: str,
    claims: tuple[str, ...],
    identity: SpiffeId | None,
    dns_names: tuple[str, ...],
    output: str,
) -> None:
    """Say why something is allowed, or why not. Exit status 0: allowed; 1: not; 2: usage.

    Ask one of these questions:

    \b
      --from ID --to ID                           may it talk to that one?
      … --method GET --path /x [--host H]         may it ask that one for this?
      --caller k8s:ns=shop … [--identity ID]      may this workload have this name?
      --measurement HEX --identity ID             may a node like this ask for it?

    This command checks no signatures: `sds policy verify` does.
    """  # noqa: D301  click reads the character, not its escape
    document = read_document(path)
    _require_one_question()
    if measurement is not None:
        if identity is None:
            raise click.UsageError("--identity is needed with --measurement")
        node = Claims(
            kind=EvidenceKind(kind),
            measurement=measurement,
            simulated=False,
            attributes=dict(_pair(claim, "--claim") for claim in claims),
        )
        answer = explanation.explain_node(document, node, identity, dns_names, timedelta(hours=1))
    elif selectors:
        answer = explanation.explain_caller(document, _facts(selectors, services), identity)
    elif source is None or target is None:
        raise click.UsageError("--from and --to belong together")
    elif any(part is not None for part in (method, url_path, host, port)):
        whom = SPIFFE_ID.convert(target, None, context)
        request = Request(method=method or "GET", path=url_path or "/", host=host or "", port=port)
        answer = explanation.explain_request(document, source, whom, request)
    elif target.startswith("spiffe:"):
        whom = SPIFFE_ID.convert(target, None, context)
        answer = explanation.explain_talk(document, source, whom)
    else:
        answer = explanation.explain_service(document, source, target)
    _print_answer(answer, output)
    if not answer.allowed:
        context.exit(1)


def _require_one_question() -> None:
    """Refuse a command line without a question, with several, or with another one's options.

    Raises:
        click.UsageError: the command line is of this kind.
    """
    talk, caller, node = (
        written("source") or written("target"),
        written("selectors"),
        written("measurement"),
    )
    if talk + caller + node != 1:
        raise click.UsageError("ask one question: --from and --to, --caller, or --measurement")
    if not talk:
        refuse_idle(("method", "url_path", "host", "port"), "needs --from and --to")
    if not caller:
        refuse_idle({"services"}, "is about a caller: it needs --caller")
    if not node:
        refuse_idle({"kind", "claims", "dns_names"}, "is about a node: it needs --measurement")
    if talk:
        refuse_idle({"identity"}, "is about --caller or --measurement")


def _print_answer(answer: explanation.PolicyAnswer, output: str) -> None:
    if output == "json":
        verdict: dict[str, Any] = {
            "allowed": answer.allowed,
            "question": answer.question,
            "because": list(answer.because),
        }
        click.echo(json.dumps(verdict))
        return
    click.echo(f"{answer.question} {'allowed' if answer.allowed else 'denied'}")
    for line in answer.because:
        click.echo(printable(f"  {line}"))


def _facts(selectors: tuple[str, ...], services: tuple[str, ...]) -> Facts:
    found = set()
    for text in selectors:
        kind, value = _pair(text, "--caller")
        try:
            found.add(Selector(check_selector_type(kind), value))
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    names = set()
    for service in services:
        namespace, slash, name = service.partition("/")
        if not slash:
            raise click.UsageError(f"--service {service!r} is not like namespace/name")
        names.add((namespace, name))
    return Facts(selectors=frozenset(found), services=frozenset(names))


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"{option} {text!r} is not like NAME=VALUE")
    return name, value


@policy.command("test")
@click.argument("path", metavar="POLICY", type=PATH)
@click.argument("case_file", metavar="CASES", type=PATH)
@OUTPUT
@click.pass_context
def test(context: click.Context, path: Path, case_file: Path, output: str) -> None:
    """Decide the cases of a file and compare: exit status 0 only if all are as expected."""
    document = read_document(path)
    wanted = yamlfile.load_file(case_file, cases.CaseFile, max_bytes=_CASES_BYTES)
    results = list(cases.run(document, wanted))
    failed = [result for result in results if not result.passed]
    if output == "json":
        click.echo(
            json.dumps(
                {
                    "passed": len(results) - len(failed),
                    "failed": len(failed),
                    "cases": [
                        {
                            "name": result.name,
                            "ok": result.passed,
                            "expected": result.expected,
                            "found": result.found,
                        }
                        for result in results
                    ],
                }
            )
        )
    else:
        for result in results:
            text = "" if result.passed else f": expected {result.expected}, found {result.found}"
            click.echo(printable(f"{'✓' if result.passed else '✗'} {result.name}{text}"))
        click.echo(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    if failed:
        context.exit(1)


@policy.command("schema")
def schema() -> None:
    """Print the JSON Schema of the document, for editors."""
    click.echo(json.dumps(json_schema(), indent=2))
