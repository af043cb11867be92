"""Kubernetes manifests as data that know their places.

Owns :class:`Manifest`, :class:`Spot` and :class:`Finding`. Invariant: every value can be traced to
its file and line, so that a message can say where something cannot be converted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import yaml

from sds.errors import ConfigurationError
from sds.settings import yamlfile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

_MAX_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that the policy document does not express as Istio did.

    Attributes:
        file: the file in which it is.
        line: the line, counted from 1.
        text: what it is, and the cause.
        narrows: whether the document therefore allows less than Istio.
    """

    file: str
    line: int
    text: str
    narrows: bool = True

    def __str__(self) -> str:
        """Return the finding as people and editors read it."""
        return f"{self.file}:{self.line}: {self.text}"


@dataclass(frozen=True, slots=True)
class Spot:
    """A value and where it was written."""

    value: Any
    file: str
    node: yaml.Node | None = field(repr=False, compare=False)

    @property
    def line(self) -> int:
        """Return the line, counted from 1."""
        return 1 if self.node is None else int(self.node.start_mark.line) + 1

    def get(self, name: str) -> Spot:
        """Return the field of this name; its value is None if there is none."""
        if not isinstance(self.value, dict) or name not in self.value:
            return Spot(None, self.file, self.node)
        for key, node in getattr(self.node, "value", ()):
            if key.value == name:
                return Spot(self.value[name], self.file, node)
        return Spot(self.value[name], self.file, self.node)

    def at(self, *names: str) -> Spot:
        """Return the field at the end of this path."""
        spot = self
        for name in names:
            spot = spot.get(name)
        return spot

    def items(self) -> Iterator[Spot]:
        """Return the members of a list; none where it is not one."""
        if isinstance(self.value, list):
            nodes = getattr(self.node, "value", [None] * len(self.value))
            for value, node in zip(self.value, nodes, strict=False):
                yield Spot(value, self.file, node)

    def fields(self) -> Iterator[tuple[str, Spot]]:
        """Return the fields of a mapping; none where it is not one."""
        if isinstance(self.value, dict):
            for name in self.value:
                yield str(name), self.get(str(name))

    def labels(self) -> dict[str, str]:
        """Return a mapping of labels; an empty one if there is none.

        Raises:
            ConfigurationError: it is something else.
        """
        labels = self.value or {}
        if not isinstance(labels, dict):
            raise ConfigurationError(
                f"{self.file}:{self.line}: labels are a mapping of names to values",
                advice="give the manifest as the API server admitted it",
            )
        return {str(name): str(value) for name, value in labels.items()}

    def finding(self, text: str, *, narrows: bool = True) -> Finding:
        """Make a finding about this value."""
        return Finding(file=self.file, line=self.line, text=text, narrows=narrows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One object."""

    root: Spot

    @property
    def kind(self) -> str:
        return str(self.root.get("kind").value or "")

    @property
    def name(self) -> str:
        return str(self.root.at("metadata", "name").value or "")

    @property
    def namespace(self) -> str:
        return str(self.root.at("metadata", "namespace").value or "default")

    @property
    def title(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


def read_manifests(paths: Sequence[Path]) -> list[Manifest]:
    """Return every object in these files, those of a ``List`` one by one.

    Raises:
        ConfigurationError: a file cannot be read, is not strict YAML, or is too large.
    """
    return [
        manifest
        for path in paths
        for manifest in parse_manifests(yamlfile.read(path, max_bytes=_MAX_BYTES), file=str(path))
    ]


def parse_manifests(content: bytes, *, file: str) -> list[Manifest]:
    """Return every object in the content of one file.

    Raises:
        ConfigurationError: the content is not strict YAML.
    """
    documents = yamlfile.parse_all(content, what=file)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    nodes = list(yaml.compose_all(content.decode("utf-8"), Loader=loader))
    found: list[Manifest] = []
    for document, node in zip(documents, nodes, strict=False):
        root = Spot(document, file, node)
        listed = root.get("kind").value == "List"
        members = list(root.get("items").items()) if listed else [root]
        found += [Manifest(root=one) for one in members if isinstance(one.value, dict)]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A workload as its manifest describes it: the account and the labels of its pods."""

    namespace: str
    account: str
    labels: Mapping[str, str]

    def is_selected(self, labels: Mapping[str, str]) -> bool:
        """Say whether a selector with these labels selects its pods."""
        return all(self.labels.get(name) == value for name, value in labels.items())


def workloads_of(manifests: Sequence[Manifest]) -> list[Workload]:
    """Return the workloads among the manifests: a Pod, or an object that makes Pods."""
    paths = {
        "Pod": (),
        "CronJob": ("spec", "jobTemplate", "spec", "template"),
        **dict.fromkeys(
            ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"), ("spec", "template")
        ),
    }
    found = []
    for manifest in manifests:
        if manifest.kind in paths:
            pod = manifest.root.at(*paths[manifest.kind])
            account = pod.at("spec", "serviceAccountName").value or "default"
            found.append(
                Workload(
                    namespace=manifest.namespace,
                    account=str(account),
                    labels=pod.at("metadata", "labels").labels(),
                )
            )
    return found
