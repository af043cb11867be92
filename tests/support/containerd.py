"""A real containerd of a test's own, and the calls by which a kubelet makes pods in it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc

from tests.support import need
from tests.support.process import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HOST_NETWORK = {"network": 2}
PAUSE = """
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <signal.h>
#include <unistd.h>

static int at(const char *path, int listening) {
  struct sockaddr_un name = {.sun_family = AF_UNIX};
  int made = socket(AF_UNIX, SOCK_STREAM, 0);
  strncpy(name.sun_path, path, sizeof name.sun_path - 1);
  if (!listening) return connect(made, (void *)&name, sizeof name) ? -1 : made;
  unlink(path);
  return bind(made, (void *)&name, sizeof name) || listen(made, 9) ? -1 : made;
}

/* The connection to words[2] is this process's own: what comes at words[3] is passed on. */
static void relay(int from, int to) {
  char some[65536];
  struct pollfd both[2] = {{from, POLLIN, 0}, {to, POLLIN, 0}};
  while (poll(both, 2, -1) > 0)
    for (int i = 0; i < 2; i++)
      if (both[i].revents) {
        ssize_t size = read(both[i].fd, some, sizeof some), sent = 0, one = 1;
        if (size <= 0) return;
        for (; sent < size && one > 0; sent += one)
          one = write(both[!i].fd, some + sent, size - sent);
        if (one <= 0) return;
      }
}

int main(int count, char **words) {
  if (count > 1 && !strcmp(words[1], "--exit")) return 0;
  signal(SIGCHLD, SIG_IGN);
  int door = count > 3 && !strcmp(words[1], "--relay") ? at(words[3], 1) : -1;
  while (door >= 0) {
    int from = accept(door, 0, 0);
    if (fork()) { close(from); continue; }
    int to = at(words[2], 0);
    if (to >= 0) relay(from, to);
    _exit(0);
  }
  for (;;) pause();
}
"""

CGROUPS = Path("/sys/fs/cgroup")


class Messages:
    """The messages of tests/support/cri/runtime.proto, in a pool of their own."""

    def __init__(self, folder: Path) -> None:
        made = folder / "runtime.pb"
        source = need.ROOT / "tests" / "support" / "cri"
        assert (
            protoc.main(["", f"-I{source}", f"--descriptor_set_out={made}", "runtime.proto"]) == 0
        )
        self._pool = descriptor_pool.DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes()).file:
            self._pool.Add(file)

    def __getattr__(self, name: str) -> Any:
        found = self._pool.FindMessageTypeByName(f"runtime.v1.{name}")
        return message_factory.GetMessageClass(found)


@dataclass
class RuntimePod:
    """A sandbox, and what it was made of."""

    uid: str
    sandbox: str
    config: dict[str, Any]


class Containerd:
    """A running containerd."""

    def __init__(self, folder: Path, channel: grpc.aio.Channel) -> None:
        self.folder = folder
        self.socket = str(folder / "containerd.sock")
        self.directories = (str(folder / "root"), str(folder / "state"))
        self.image = ""
        self._channel = channel
        self._messages = Messages(folder)
        self._pods: list[RuntimePod] = []

    async def _call(self, method: str, request: Any, response: str) -> Any:
        call: Any = self._channel.unary_unary(
            f"/runtime.v1.RuntimeService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=getattr(self._messages, response).FromString,
        )
        return await call(request, timeout=30)

    async def pod(
        self,
        name: str = "web-1",
        *,
        privileged: bool = False,
        handler: str = "",
        namespaces: dict[str, int] | None = None,
        **security: Any,
    ) -> RuntimePod:
        """A sandbox as the kubelet makes one."""
        options = {**HOST_NETWORK, **(namespaces or {})}
        security = {"namespace_options": options, "privileged": privileged, **security}
        uid = str(uuid.uuid4())
        config = {
            "metadata": {"name": name, "uid": uid, "namespace": "shop"},
            "log_directory": str(self.folder),
            "linux": {
                "cgroup_parent": f"/kubepods/burstable/pod{uid}",
                "security_context": security,
            },
        }
        request = self._messages.RunPodSandboxRequest(config=config, runtime_handler=handler)
        made = await self._call("RunPodSandbox", request, "RunPodSandboxResponse")
        pod = RuntimePod(uid=uid, sandbox=made.pod_sandbox_id, config=config)
        self._pods.append(pod)
        return pod

    async def container(
        self,
        pod: RuntimePod,
        name: str = "main",
        *,
        attempt: int = 0,
        start: bool = True,
        **changes: Any,
    ) -> str:
        """A running container, or one that is only made; its ID."""
        security = {
            "namespace_options": {**HOST_NETWORK, "pid": 1},
            "masked_paths": ["/proc/acpi", "/proc/kcore"],
            "readonly_paths": ["/proc/sys"],
        }
        security |= changes.pop("security", {})
        config = {
            "metadata": {"name": name, "attempt": attempt},
            "image": {"image": "localhost/pause:1"},
            "args": ["--serve"],
            "envs": [{"key": "MODE", "value": "production"}],
            "log_path": f"{name}.log",
            "linux": {"security_context": security},
            **changes,
        }
        request = self._messages.CreateContainerRequest(
            pod_sandbox_id=pod.sandbox, config=config, sandbox_config=pod.config
        )
        made = await self._call("CreateContainer", request, "CreateContainerResponse")
        if not start:
            return str(made.container_id)
        await self._call(
            "StartContainer",
            self._messages.ContainerRequest(container_id=made.container_id),
            "Empty",
        )
        return str(made.container_id)

    async def exec(self, identifier: str, *command: str) -> int:
        """A process in a container, as a probe or ``kubectl exec`` starts one; its exit status."""
        request = self._messages.ExecSyncRequest(container_id=identifier, cmd=command, timeout=9)
        answer = await self._call("ExecSync", request, "ExecSyncResponse")
        return int(answer.exit_code)

    async def load(self, archive: Path) -> None:
        """Import an archive of images."""
        words = [need.tool("ctr"), "-a", self.socket, "-n", "k8s.io", "images", "import"]
        await asyncio.to_thread(subprocess.check_output, [*words, str(archive)])

    async def remove(self, identifier: str) -> None:
        """Stop and remove a container."""
        request = self._messages.ContainerRequest(container_id=identifier)
        await self._call("StopContainer", request, "Empty")
        await self._call("RemoveContainer", request, "Empty")

    async def remove_pod(self, pod: RuntimePod) -> None:
        """Stop and remove a sandbox."""
        request = self._messages.SandboxRequest(pod_sandbox_id=pod.sandbox)
        await self._call("StopPodSandbox", request, "Empty")
        await self._call("RemovePodSandbox", request, "Empty")
        self._pods.remove(pod)
        # Of each hierarchy by its name: groups of other tests come and go meanwhile.
        for top in (CGROUPS, *CGROUPS.iterdir()):
            with contextlib.suppress(OSError):
                (top / "kubepods" / "burstable" / f"pod{pod.uid}").rmdir()

    async def close(self) -> None:
        """Remove every pod."""
        for pod in list(self._pods):
            await self.remove_pod(pod)


def first_process(container: str) -> int:
    """The pid of the process whose control group is this container's.

    As bytes: a control group of another test's process may have any name.
    """
    for status in Path("/proc").glob("[0-9]*/cgroup"):
        with contextlib.suppress(OSError):
            if container.encode() in status.read_bytes():
                return int(status.parent.name)
    raise AssertionError(f"no process in container {container}")


@contextlib.asynccontextmanager
async def containerd(folder: Path, *, runtimes: str = "") -> AsyncIterator[Containerd]:
    """A containerd with the image ``localhost/pause:1``.

    ``runtimes``: more of its configuration. ``SDS_CONTAINERD`` names the program of another
    version, whose shim lies in ``PATH``.
    """
    program = os.environ.get("SDS_CONTAINERD") or need.tool("containerd")
    ctr, gcc = need.tool("ctr"), need.tool("gcc")
    need.tool("runc")
    config = folder / "containerd.toml"
    config.write_text(CONFIGURATION.format(folder=folder) + runtimes)
    _network(folder)
    async with running([program, "-c", str(config)]):
        archive = folder / "image.tar"
        binary = folder / "pause"
        source = folder / "pause.c"
        source.write_text(PAUSE)
        subprocess.run([gcc, "-static", "-o", binary, source], check=True)  # noqa: ASYNC221
        image = _image(archive, binary.read_bytes())
        importing = [ctr, "-a", str(folder / "containerd.sock"), "-n", "k8s.io", "images", "import"]
        while subprocess.run([*importing, archive], capture_output=True).returncode:  # noqa: ASYNC221, PLW1510
            await asyncio.sleep(0.1)
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(
            f"unix:{folder / 'containerd.sock'}", options=options
        ) as channel:
            made = Containerd(folder, channel)
            made.image = image
            try:
                yield made
            finally:
                await made.close()
    shutil.rmtree(folder / "root", ignore_errors=True)


CONFIGURATION = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{folder}/cni"
    bin_dir = "{folder}/cni-bin"
"""


def _image(archive: Path, binary: bytes) -> str:
    """Write an archive with one image; its configuration's digest."""
    config = {"Entrypoint": ["/pause"], "Env": ["PATH=/bin"]}
    return _archive(archive, "localhost/pause:1", config, {"pause": binary})


def _archive(archive: Path, name: str, config: dict[str, Any], files: dict[str, bytes]) -> str:
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    whole = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
    ).encode()
    hexadecimal = hashlib.sha256(whole).hexdigest()
    manifest = json.dumps(
        [{"Config": f"{hexadecimal}.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    ).encode()
    with tarfile.open(archive, "w") as tar:
        for member, content in (
            (f"{hexadecimal}.json", whole),
            ("layer.tar", layer.getvalue()),
            ("manifest.json", manifest),
        ):
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return f"sha256:{hexadecimal}"


PLUGIN = """#!/bin/sh
[ "$CNI_COMMAND" = ADD ] || exit 0
echo '{"cniVersion": "0.4.0", "interfaces": [{"name": "eth0", "sandbox": "'$CNI_NETNS'"}],
  "ips": [{"version": "4", "interface": 0, "address": "10.9.9.2/24"}]}'
"""


def _network(folder: Path) -> None:
    """A network for pods that consists of an answer: nothing in these tests sends anything."""
    (folder / "cni").mkdir()
    network = {"cniVersion": "0.4.0", "name": "test", "plugins": [{"type": "test"}]}
    (folder / "cni" / "10-test.conflist").write_text(json.dumps(network))
    (folder / "cni-bin").mkdir()
    for name in ("test", "loopback"):
        plugin = folder / "cni-bin" / name
        plugin.write_text(PLUGIN)
        plugin.chmod(0o755)


def image_archive(archive: Path, name: str, config: dict[str, Any], files: dict[str, str]) -> None:
    """Write an archive as ``docker save`` does, with this configuration and these files."""
    _archive(archive, name, config, {key: value.encode() for key, value in files.items()})
