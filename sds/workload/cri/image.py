"""Reads configuration and users of an image from an OCI layout or ``docker save``'s archive.

Owns :func:`read_image`. Invariants: each blob has the digest that names it; nothing is unpacked
to a disk; sizes are bounded. The configuration's digest is what containerd calls the image's ID.

Sources: OCI image-spec 1.1 ``image-layout.md``, ``config.md``, ``layer.md`` (whiteouts); the
archive of ``docker save`` (``manifest.json``).
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from sds.errors import ConfigurationError
from sds.files import read_file
from sds.untrusted_input import reading

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_MOST_JSON: Final = 4 << 20
_MOST_LAYER: Final = 4 << 30
_MOST_FILE: Final = 1 << 20
_USERS: Final = ("etc/passwd", "etc/group")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageContent:
    """The parts of an image on which a container's specification depends.

    Attributes:
        digest: the digest of its configuration, ``sha256:…``.
        config: the configuration's ``config``: Entrypoint, Cmd, Env, User, WorkingDir, Volumes.
        passwd: the lines of its ``/etc/passwd``, split.
        group: the lines of its ``/etc/group``, split.
    """

    digest: str
    config: dict[str, Any]
    passwd: tuple[tuple[str, ...], ...]
    group: tuple[tuple[str, ...], ...]


def read_image(place: Path) -> ImageContent:
    """Read the one image of a layout or an archive.

    Args:
        place: a directory (OCI layout) or a tar of one, or what ``docker save`` writes.

    Raises:
        ConfigurationError: it is neither, it has several images, or a blob is not what its digest
            says.
    """
    with reading(
        f"{place} is not an OCI layout or image archive that can be read",
        ConfigurationError,
        advice="make one with `skopeo copy docker://… oci:DIRECTORY` or `docker save`",
    ):
        if place.is_dir():
            return _read(lambda name, most: read_file(place / name, max_bytes=most))
        if not place.is_file():  # opening a FIFO would wait for a writer
            raise ValueError("there is no such file or directory")
        with tarfile.open(place) as archive:
            return _read(lambda name, most: _member(archive, name, most))


def _member(archive: tarfile.TarFile, name: str, most: int) -> bytes:
    for spelled in (name, f"./{name}"):
        try:
            entry = archive.getmember(spelled)
        except KeyError:
            continue
        file = archive.extractfile(entry) if entry.isfile() and entry.size <= most else None
        if file is None:
            raise ValueError(f"{name} is not a file, or is too large")
        return file.read()
    raise FileNotFoundError(2, f"it has no {name}")


def _read(read: Any) -> ImageContent:
    def blob(digest: str, most: int = _MOST_JSON) -> bytes:
        kind, _, value = digest.partition(":")
        if kind != "sha256" or len(value) != 64 or not value.isalnum():  # noqa: PLR2004  hex
            raise ValueError(f"{digest!r} is not a SHA-256")
        content: bytes = read(f"blobs/sha256/{value}", most)
        if hashlib.sha256(content).hexdigest() != value:
            raise ValueError(f"a blob does not have its digest {digest}")
        return content

    try:
        index = json.loads(read("index.json", _MOST_JSON))
    except FileNotFoundError:
        (saved,) = json.loads(read("manifest.json", _MOST_JSON))
        config = read(saved["Config"], _MOST_JSON)
        layers: Iterable[bytes] = (read(name, _MOST_LAYER) for name in saved["Layers"])
    else:
        manifest = json.loads(blob(_one(index["manifests"])))
        while "manifests" in manifest:
            manifest = json.loads(blob(_one(manifest["manifests"])))
        config = blob(manifest["config"]["digest"])
        layers = (blob(each["digest"], _MOST_LAYER) for each in manifest["layers"])
    passwd, group = _users(layers)
    return ImageContent(
        digest="sha256:" + hashlib.sha256(config).hexdigest(),
        config=json.loads(config).get("config") or {},
        passwd=passwd,
        group=group,
    )


def _one(manifests: list[dict[str, Any]]) -> str:
    """Return the one image for Linux on this architecture; attestations beside it do not count."""
    found = [
        each
        for each in manifests
        if (each.get("platform") or {}).get("architecture", "amd64") == "amd64"
        and (each.get("platform") or {}).get("os", "linux") == "linux"
    ]
    if len(found) != 1:
        raise ValueError(f"it has {len(found)} images for linux/amd64, not one")
    return str(found[0]["digest"])


def _users(layers: Iterable[bytes]) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """Return ``/etc/passwd`` and ``/etc/group`` as the layers leave them."""
    files: dict[str, bytes] = {}
    for layer in layers:
        with tarfile.open(fileobj=BytesIO(layer)) as tar:
            for entry in tar:
                name = entry.name.removeprefix("./").strip("/")
                if name in ("etc/.wh..wh..opq", ".wh.etc", ".wh..wh..opq"):
                    files.clear()
                for each in _USERS:
                    folder, base = each.split("/")
                    if name == f"{folder}/.wh.{base}":
                        files.pop(each, None)
                    elif name == each:
                        file = tar.extractfile(entry) if entry.size <= _MOST_FILE else None
                        if file is None:
                            raise ValueError(f"/{each} is not an ordinary file, or is too large")
                        files[each] = file.read()
    return tuple(
        tuple(
            tuple(line.split(":"))
            for line in files.get(each, b"").decode(errors="replace").split("\n")
            if line.strip() and not line.startswith("#")
        )
        for each in _USERS
    )
