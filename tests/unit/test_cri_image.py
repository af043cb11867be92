"""Images from layouts and archives, manifests that do not tell what runs, and lines that differ."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from sds.workload.cri.canonical import CanonicalContainer
from sds.workload.cri.image import read_image
from sds.workload.cri.kubelet import asked
from sds.workload.cri.nearest import compared
from sds.workload.cri.prediction import NodeProfile, predicted_containers
from sds.workload.cri.settings import PodContents
from tests.support.containerd import image_archive
from tests.support.refusals import refused

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = {"User": "app", "Cmd": ["/run"]}


def layer(files: dict[str, str]) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content.encode()))
    return whole.getvalue()


def layout(folder: Path, *layers: dict[str, str], platforms: tuple[str, ...] = ("amd64",)) -> str:
    """Write an OCI layout; the digest of its configuration."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(content: bytes) -> dict[str, Any]:
        name = hashlib.sha256(content).hexdigest()
        (blobs / name).write_bytes(content)
        return {"digest": f"sha256:{name}", "size": len(content)}

    config = put(json.dumps({"config": CONFIG}).encode())
    manifest = {"config": config, "layers": [put(layer(each)) for each in layers]}
    one = put(json.dumps(manifest).encode())
    many = [{**one, "platform": {"os": "linux", "architecture": each}} for each in platforms]
    inner = put(json.dumps({"manifests": many}).encode())
    (folder / "index.json").write_text(json.dumps({"manifests": [inner]}))
    return str(config["digest"])


def test_a_layout_with_an_index_in_its_index(tmp_path: Path) -> None:
    first = {"etc/passwd": "root:x:0:0::/:\n# no\napp:x:7:8::/:\n", "etc/group": "old:x:1:\n"}
    second = {"./etc/.wh.group": "", "usr/x": ""}
    digest = layout(tmp_path, first, second, platforms=("arm64", "amd64"))
    image = read_image(tmp_path)
    assert image.digest == digest
    assert image.config == CONFIG
    assert [line[0] for line in image.passwd] == ["root", "app"]
    assert image.group == ()
    archive = tmp_path / "layout.tar"
    with tarfile.open(archive, "w") as tar:
        for path in sorted(tmp_path.rglob("*")):
            if path.is_file() and path != archive:
                tar.add(path, f"./{path.relative_to(tmp_path)}")
    assert read_image(archive) == image


def test_what_is_no_image(tmp_path: Path) -> None:
    two = tmp_path / "two"
    layout(two, platforms=("amd64", "amd64"))
    changed = tmp_path / "changed"
    layout(changed)
    for blob in (changed / "blobs" / "sha256").iterdir():
        blob.write_bytes(blob.read_bytes() + b" ")
    (tmp_path / "text").write_text("x")
    (tmp_path / "empty").mkdir()
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "index.json").write_text('{"manifests": [{"digest": "sha256:../../x"}]}')
    for name, why in (
        ("two", "2 images for linux/amd64"),
        ("changed", "does not have its digest"),
        ("text", "cannot be read|could not be opened|not an OCI layout"),
        ("empty", "not an OCI layout"),
        ("odd", "is not a SHA-256"),
        ("none", "not an OCI layout"),
    ):
        with refused("configuration", match=why):
            read_image(tmp_path / name)


def spec(**changes: Any) -> dict[str, Any]:
    pod = {"enableServiceLinks": False, "automountServiceAccountToken": False}
    return {**pod, "containers": [{"name": "main", "image": "x"}], **changes}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"enableServiceLinks": True}, "other Services"),
        ({"automountServiceAccountToken": True}, "as the API server admitted it"),
        ({"hostIPC": True}, "what hostIPC makes of it"),
        ({"ephemeralContainers": [{}]}, "what ephemeralContainers makes of it"),
        ({"tty": True}, "main: the manifest does not say what tty"),
        ({"envFrom": [{}]}, "main: the manifest does not say what envFrom"),
        ({"env": [{"name": "A", "valueFrom": {}}, {"name": "B", "valueFrom": {"x": 1}}]}, "B"),
        ({"args": ["$(NAME)"]}, "is not a variable"),
        ({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}, "is not in the manifest"),
        ({"volumeMounts": [{"name": "v", "subPathExpr": "x"}]}, "what subPathExpr"),
        ({"securityContext": {"privileged": True}}, "securityContext.privileged"),
        ({"securityContext": {"procMount": "Unmasked"}}, "securityContext.procMount"),
        ({"securityContext": {"capabilities": {"add": ["ALL"]}}}, "depends on the node"),
        ({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}, "seccomp profile"),
        ({"image": "y"}, "the image y is not given"),
    ],
)
def test_a_manifest_that_does_not_tell_what_runs(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    image = tmp_path / "image.tar"
    image_archive(image, "x", {"Cmd": ["/run"]}, {})
    whole = spec(**changes)
    if not {"hostIPC", "ephemeralContainers", *spec()} & set(changes):
        whole = spec(containers=[{"name": "main", "image": "x", **changes}])
    with refused("configuration", match=why):
        predicted_containers(whole, {"x": read_image(image)}, NodeProfile())


def test_dollars_as_the_kubelet_reads_them() -> None:
    one = {
        "name": "main",
        "image": "x",
        "env": [{"name": "A", "value": "a"}, {"name": "B", "value": "$(A)$$(A)$A$"}],
        "args": ["$(B)", "$$$(A)"],
    }
    (found,) = asked(spec(containers=[one]), kubelet="/k")
    assert dict(found.environment)["B"] == "a$(A)$A$"
    assert found.args == ("a$(A)$A$", "$a")


def contents(*lines: str, **changes: Any) -> PodContents:
    digest = CanonicalContainer(lines=lines, unmeasured=frozenset()).digest
    return PodContents(
        sandbox=digest, containers=(digest,), lines={digest: lines, **changes.pop("more", {})}
    )


def test_lines_that_differ_from_the_nearest_list() -> None:
    seen = ("container x", "arg 1", "env 2", "env 2", "env 3")
    far = contents("container x", "arg 9", "env 8")
    near = contents("container x", "arg 1", "env 2", "env 3", "env 4")
    other = contents("container y", "arg 1", "env 2", "env 2", "env 3")
    title, *lines = compared(seen, (far, near, other))
    assert title == f"# compared with the list {near.digest}"
    assert lines == [
        *("- env …", "  container x", "  arg 1", "+ env 2", "  env 2", "  env 3"),
    ]
    assert compared(seen, (contents(*seen),))[0].startswith("# as listed for pod")
    assert compared(seen, (contents(seen[0], *seen[:0:-1]),))[0].endswith("in another order")
    assert compared(seen, (other,))[0] == "# no list has the lines of a container of this name"


def test_lines_must_have_their_digest() -> None:
    with pytest.raises(ValidationError, match="have the digest sha256:"):
        contents("container x", more={"sha256:" + "1" * 64: ("container y",)})
    with_lines, without = contents("container x"), contents("container x")
    assert with_lines.digest == without.model_copy(update={"lines": {}}).digest
