"""Files of policy as Kubernetes mounts them."""

from __future__ import annotations

from pathlib import Path


def deploy(mounted: Path, number: int, content: bytes) -> None:
    """As the kubelet does (atomic_writer.go): new directory, new link, one rename."""
    data = mounted / f"..2026_{number}"
    data.mkdir()
    (data / "policy.json").write_bytes(content)
    link = mounted / "..data_tmp"
    link.symlink_to(data.name)
    link.replace(mounted / "..data")
    if not (mounted / "policy.json").is_symlink():
        (mounted / "policy.json").symlink_to(Path("..data") / "policy.json")
