"""Runs ``sds policy pod``, which lists the parts of a pod for rules on ``cri:pod-digest``.

Owns the command. It reads a reference pod from a node's runtime, in the agent's own canonical form,
and compares it with the manifest; or it computes the list from the manifest and images.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from sds.commands.options import NamedPath, refuse_idle
from sds.errors import ConfigurationError
from sds.settings import yamlfile
from sds.settings.paths import parse_absolute
from sds.workload.cri.canonical import CanonicalContainer, Surroundings, canonical, expected_exec
from sds.workload.cri.image import read_image
from sds.workload.cri.manifest import differences, exec_commands
from sds.workload.cri.prediction import NodeProfile, predicted_containers, predicted_sandbox
from sds.workload.cri.runtime import Runtime
from sds.workload.cri.settings import CriSettings, PodContents

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sds.workload.cri.runtime import Listed

DEFAULTS = CriSettings()


def _absolute(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        try:
            parse_absolute(value)
        except ValueError as error:
            raise click.BadParameter(f"{error}, found {value!r}") from error
    return values


@click.command("pod")
@click.argument("manifest", type=NamedPath(path_type=Path, dir_okay=False, exists=True))
@click.option("--uid", default="", help="UID of a reference pod (metadata.uid) on this node.")
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="NAME=PATH",
    help="Without a reference pod: an image as the manifest names it, and its OCI layout or "
    "archive; one for each, and one for the sandbox image.",
)
@click.option(
    "--node",
    "profile",
    type=NamedPath(path_type=Path, dir_okay=False),
    help="With --image: a YAML file of what the nodes add (docs/kubernetes.md).",
)
@click.option(
    "--socket",
    default=DEFAULTS.socket,
    show_default=True,
    help="The runtime's CRI socket on the node where that pod runs.",
)
@click.option(
    "--runtime-directory",
    "directories",
    multiple=True,
    callback=_absolute,
    default=DEFAULTS.runtime_directories,
    help="The runtime's root and state directories, if they are not the usual ones: as in "
    "node.cri.runtime_directories.",
)
@click.option("--lines", is_flag=True, help="Show each container's canonical lines too.")
@click.option(
    "--keep-lines",
    is_flag=True,
    help="Put the lines into the entry, so that `sds whoami` can say which one differs.",
)
def pod(
    manifest: Path,
    uid: str,
    *,
    images: tuple[str, ...],
    profile: Path | None,
    socket: str,
    directories: tuple[str, ...],
    lines: bool,
    keep_lines: bool,
) -> None:
    """List what a pod consists of, for the rule cri:pod-digest.

    MANIFEST is the Pod's YAML as the API server admitted it (sidecars included).

    With --uid, a reference pod of this manifest must run on this node, and each of its containers
    must have been started. The command compares what the runtime says of the pod with the manifest:
    the containers, their commands, arguments, environment, users and privileges.

    With --image, the command computes the list from the manifest and the images alone, as
    containerd 1.6 would make it. It refuses a manifest whose list depends on anything else.

    Put the result under node.cri.pods of the agent's configuration, and under pods of the signed
    policy for `sds admission`.
    """
    document = _pod_of(manifest)
    name = str(document["metadata"].get("name") or document["metadata"].get("generateName", ""))
    if bool(uid) == bool(images):
        raise click.UsageError("give --uid or --image, and not both")
    if images:
        refuse_idle({"socket", "directories"}, "is about the runtime: it needs --uid")
    else:
        refuse_idle({"profile"}, "is for --image")
    wrong: tuple[str, ...] = ()
    if images:
        with _a_pods_form(manifest):
            sandbox, found = _compute(document["spec"], images, profile)
    else:
        sandbox, found = asyncio.run(_observe(socket, uid, directories))
        with _a_pods_form(manifest):
            wrong = differences(document["spec"], {key: one.lines for key, one in found.items()})
    if wrong:
        raise ConfigurationError(
            f"the pod {uid} is not what {manifest} says: " + "; ".join(wrong),
            advice="start a fresh pod of this manifest, and wait until every container has started",
        )
    with _a_pods_form(manifest):
        execs = tuple(sorted(one.digest for one in _execs(document["spec"], found)))
    unmeasured = sorted(sandbox.unmeasured.union(*(one.unmeasured for one in found.values())))
    contents = PodContents(
        name=name,
        sandbox=sandbox.digest,
        containers=tuple(sorted({one.digest for one in found.values()})),
        execs=execs,
        unmeasured=tuple(unmeasured),
        lines={one.digest: one.lines for one in found.values()} if keep_lines else {},
    )
    if lines:
        for title, one in (("sandbox", sandbox), *sorted(found.items())):
            click.echo(f"# {title} {one.digest}")
            click.echo("".join(f"#   {line}\n" for line in one.lines), nl=False)
    click.echo(f'# match: {{"cri:pod-digest": "{contents.digest}"}}')
    click.echo(
        yaml.safe_dump([contents.model_dump(mode="json", exclude_defaults=True)], sort_keys=False),
        nl=False,
    )


@contextlib.contextmanager
def _a_pods_form(manifest: Path) -> Iterator[None]:
    """Turn errors in the block into errors about the ``spec`` of a person's Pod.

    Raises:
        ConfigurationError: the ``spec`` does not have the form of a Pod's.
    """
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{manifest}: its spec does not have the form of a Pod's",
            advice="write the pod as the API server admitted it: kubectl get pod NAME -o yaml",
        ) from error


def _compute(
    spec: dict[str, Any], images: tuple[str, ...], profile: Path | None
) -> tuple[CanonicalContainer, dict[str, CanonicalContainer]]:
    """Compute the sandbox and the containers of a pod by name."""
    node = NodeProfile() if profile is None else yamlfile.load_file(profile, NodeProfile)
    read = {}
    for each in images:
        name, equals, place = each.rpartition("=")
        if not equals or not name:
            raise click.UsageError(f"--image {each}: write NAME=PATH")
        read[name] = read_image(Path(place))
    if node.sandbox_image not in read:
        raise ConfigurationError(
            f"the sandbox image {node.sandbox_image} is not given (--image)",
            advice="it is sandbox_image in containerd's configuration; --node can name another",
        )
    sandbox = predicted_sandbox(spec, read[node.sandbox_image], node)
    return sandbox, predicted_containers(spec, read, node)


def _execs(
    spec: dict[str, Any], found: dict[str, CanonicalContainer]
) -> Iterator[CanonicalContainer]:
    """Return the processes that probes and hooks of the manifest start in its containers."""
    for name, command in exec_commands(spec):
        yield expected_exec(name, found[name], command)


def _pod_of(manifest: Path) -> dict[str, Any]:
    documents = yamlfile.parse_all(yamlfile.read(manifest), what=str(manifest))
    pods = [each for each in documents if isinstance(each, dict) and each.get("kind") == "Pod"]
    if len(pods) != 1 or not all(
        isinstance(pods[0].get(key), dict) for key in ("metadata", "spec")
    ):
        raise ConfigurationError(
            f"{manifest} has {len(pods)} Pods, not one",
            advice="write the pod as the API server admitted it: kubectl get pod NAME -o yaml",
        )
    return pods[0]


async def _observe(
    socket: str, uid: str, directories: tuple[str, ...]
) -> tuple[CanonicalContainer, dict[str, CanonicalContainer]]:
    """Read the sandbox and the containers of a pod by name from the runtime."""
    async with Runtime(socket) as runtime:
        for identifier in await runtime.sandboxes():
            said = await runtime.sandbox(identifier)
            if said.pod_uid == uid:
                break
        else:
            raise ConfigurationError(f"the runtime at {socket} has no pod with the UID {uid}")
        first = Surroundings(pod_uid=uid, sandbox_id=identifier, sandbox_pid=0, runtime=directories)
        around = dataclasses.replace(first, sandbox_pid=said.pid)
        sandbox = canonical("", said.image, said.spec, first, container_id=identifier)
        found: dict[str, CanonicalContainer] = {}
        for each in _newest(await runtime.containers(), identifier):
            about = await runtime.container(each.id)
            found[each.name] = canonical(
                each.name, each.image, about.spec, around, container_id=each.id
            )
        return sandbox, found


def _newest(listed: tuple[Listed, ...], sandbox: str) -> tuple[Listed, ...]:
    newest: dict[str, Listed] = {}
    for each in sorted(listed, key=lambda one: one.attempt):
        if each.sandbox_id == sandbox:
            newest[each.name] = each
    return tuple(newest.values())
