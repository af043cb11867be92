"""The CSI driver as a kubelet uses it: its calls over gRPC, real directories, real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from sds._proto.csi.v1 import csi_pb2
from sds._proto.kubelet.pluginregistration.v1 import registration_pb2
from sds.agent.csi import csi_driver
from sds.agent.csi_registration import registered
from sds.agent.node_settings import CsiSettings
from sds.clock import SystemClock
from sds.csi import volume_files
from sds.csi.service import RegistrationService
from sds.csi.volume import EPHEMERAL, MOST_OF_A_POD, POD_UID
from sds.workload import front_door as door_module
from tests.support.front_door import (
    ask,
    descriptors,
    front_door,
    nothing_stays_open,
    rules,
    unix,
)
from tests.support.node import short_folder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from google.protobuf.message import Message

    from sds.csi.driver import Driver
from tests.support.front_door import Door

UID = "0b9ba2a2-5f0c-4f3e-8f6c-0c7a7bd1f3c1"
OTHER = "1b9ba2a2-5f0c-4f3e-8f6c-0c7a7bd1f3c1"
NAME = "csi.attested-sds"
OURS = {"unix:uid": str(os.geteuid())}


@dataclass
class Kubelet:
    """The kubelet's directories, and its side of the calls."""

    root: Path

    @property
    def registry(self) -> Path:
        return self.root / "plugins_registry"

    def target(self, uid: str = UID, name: str = "sds") -> Path:
        return self.root / "pods" / uid / "volumes" / "kubernetes.io~csi" / name / "mount"

    def record(self, uid: str = UID, name: str = "sds", driver: str = NAME) -> None:
        """What the kubelet writes before it asks for the volume."""
        folder = self.target(uid, name).parent
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vol_data.json").write_text(json.dumps({"driverName": driver}))

    async def call(self, method: str, request: Message, answer: type[Message]) -> Message:
        path = self.root / "plugins" / NAME / "csi.sock"
        if method.startswith("/pluginregistration"):
            path = self.root / "plugins_registry" / f"{NAME}-reg.sock"
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"unix:{path}", options=options) as channel:
            stub: grpc.aio.UnaryUnaryMultiCallable[Message, Message] = channel.unary_unary(
                method,
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=answer.FromString,
            )
            return await stub(request, timeout=20)

    async def publish(self, uid: str = UID, name: str = "sds", **changes: object) -> None:
        self.record(uid, name)
        request = csi_pb2.NodePublishVolumeRequest(
            volume_id=f"csi-{uid}-{name}",
            target_path=str(self.target(uid, name)),
            readonly=bool(changes.get("readonly", True)),
            volume_context={POD_UID: uid, EPHEMERAL: "true"},
        )
        request.volume_capability.mount.SetInParent()
        await self.call(
            "/csi.v1.Node/NodePublishVolume", request, csi_pb2.NodePublishVolumeResponse
        )

    async def unpublish(self, uid: str = UID, name: str = "sds") -> None:
        request = csi_pb2.NodeUnpublishVolumeRequest(
            volume_id=f"csi-{uid}-{name}", target_path=str(self.target(uid, name))
        )
        await self.call(
            "/csi.v1.Node/NodeUnpublishVolume", request, csi_pb2.NodeUnpublishVolumeResponse
        )


@pytest.fixture
def kubelet() -> Iterator[Kubelet]:
    with short_folder() as root:
        for name in ("pods", "plugins", "plugins_registry"):
            (root / name).mkdir()
        yield Kubelet(root)


@pytest.fixture
def in_pod(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the kernel show this process in a pod: only what the kernel says is replaced."""

    def put(uid: str) -> None:
        monkeypatch.setattr(door_module, "owner_of", lambda _peer, _roots: f"pod {uid}")

    put(UID)
    return put


@contextlib.asynccontextmanager
async def running(kubelet: Kubelet, folder: Path) -> AsyncIterator[tuple[Door, Driver]]:
    settings = CsiSettings.model_validate({"kubelet_dir": str(kubelet.root)})
    folder.mkdir(exist_ok=True)
    async with (
        front_door(folder, attestors=unix(), rules=rules(OURS)) as door,
        csi_driver(settings, door.door, clock=SystemClock()) as driver,
    ):
        await info(kubelet, f"{NAME}-reg.sock")  # as its plugin watcher does
        yield door, driver


async def asked(kubelet: Kubelet, folder: Path, uid: str = UID, name: str = "sds") -> str:
    """Who this process is, on the pod's socket; through a short link: addresses are short."""
    link = folder / f"{uid[:4]}{name}"
    if not link.is_symlink():
        link.symlink_to(kubelet.target(uid, name))
    return await ask(link / "sds.sock")


async def test_a_pod_gets_a_directory_with_a_socket_of_its_own(
    kubelet: Kubelet, tmp_path: Path, in_pod: object
) -> None:
    async with running(kubelet, tmp_path / "run") as (_, driver):
        await kubelet.publish()
        await kubelet.publish()  # idempotent
        target = kubelet.target()
        assert sorted(each.name for each in target.iterdir()) == ["sds.sock", "socket"]
        assert stat.S_IMODE(target.stat().st_mode) == 0o755
        assert stat.S_IMODE((target / "sds.sock").stat().st_mode) == 0o666
        assert (target / "socket").readlink().name == "sds.sock"
        assert await asked(kubelet, tmp_path) == "spiffe://example.org/r0"
        assert driver.volumes == 1
        await kubelet.unpublish()
        assert not target.exists()
        assert driver.volumes == 0
        await kubelet.unpublish()  # idempotent


async def test_a_process_outside_the_pod_is_refused(
    kubelet: Kubelet, tmp_path: Path, in_pod: Callable[[str], None]
) -> None:
    async with running(kubelet, tmp_path / "run") as (door, _):
        await kubelet.publish()
        in_pod(OTHER)
        with pytest.raises(grpc.aio.AioRpcError):
            await asked(kubelet, tmp_path)
        assert door.door.statistics.refused["other_pod"] >= 1
        in_pod(UID)
        assert await asked(kubelet, tmp_path) == "spiffe://example.org/r0"


async def test_a_volume_that_can_be_written_to_is_refused_with_a_text_for_the_pods_events(
    kubelet: Kubelet, tmp_path: Path
) -> None:
    async with running(kubelet, tmp_path / "run") as (_, driver):
        with pytest.raises(grpc.aio.AioRpcError, match="readOnly: true") as caught:
            await kubelet.publish(readonly=False)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert not kubelet.target().exists()
        assert driver.failures == {"csi_volume": 1}


async def test_sockets_come_back_after_a_restart(
    kubelet: Kubelet, tmp_path: Path, in_pod: Callable[[str], None]
) -> None:
    async with running(kubelet, tmp_path / "run"):
        await kubelet.publish()
        await kubelet.publish(OTHER)
    assert (kubelet.target() / "sds.sock").exists()
    # Another driver's volume, and a record that is broken: they change nothing for ours.
    kubelet.record(name="other", driver="csi.example.org")
    kubelet.record(OTHER, "broken")
    (kubelet.target(OTHER, "broken").parent / "vol_data.json").write_text("{")
    async with running(kubelet, tmp_path / "again") as (_, driver):
        assert driver.volumes == 2
        assert driver.failures == {"csi_volume": 1}
        assert await asked(kubelet, tmp_path) == "spiffe://example.org/r0"
        assert not kubelet.target(name="other").exists()


async def test_a_socket_that_cannot_come_back_is_tried_again(
    kubelet: Kubelet, tmp_path: Path, in_pod: object, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a full disk, or without descriptors: the kubelet does not ask again."""
    async with running(kubelet, tmp_path / "run"):
        await kubelet.publish()
        await kubelet.publish(OTHER)
    shutil.rmtree(kubelet.target())
    kubelet.target().write_text("in the way")
    async with running(kubelet, tmp_path / "again") as (_, driver):
        assert driver.volumes == 1
        await kubelet.unpublish(OTHER)  # the kubelet has a record of it for a while
        async with asyncio.timeout(20):
            kubelet.target().unlink()
            while not driver.volumes:
                await asyncio.sleep(0.01)
        assert await asked(kubelet, tmp_path) == "spiffe://example.org/r0"
        assert driver.volumes == 1
        assert not kubelet.target(OTHER).exists()
        assert driver.failures == {"socket": 1}
    assert len([one for one in caplog.records if "a CSI volume failed" in one.message]) == 1


async def test_a_volume_whose_socket_is_gone_gets_another_one(
    kubelet: Kubelet, tmp_path: Path, in_pod: object
) -> None:
    async with running(kubelet, tmp_path) as (_, driver):
        await kubelet.publish()
        shutil.rmtree(kubelet.target().parent)
        await kubelet.publish()
        assert await asked(kubelet, tmp_path) == "spiffe://example.org/r0"
        assert driver.volumes == 1


async def test_a_link_in_the_kubelets_directory_is_not_followed(
    kubelet: Kubelet, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    kubelet.record()
    kubelet.target().symlink_to(elsewhere)
    async with running(kubelet, tmp_path / "run"):
        with pytest.raises(grpc.aio.AioRpcError, match="cannot be made") as caught:
            await kubelet.publish()
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        await kubelet.publish(OTHER)
    assert not list(elsewhere.iterdir())


async def test_a_pod_that_lists_thousands_of_volumes_gets_few(
    kubelet: Kubelet, tmp_path: Path, in_pod: object
) -> None:
    """Who writes a pod cannot use up the agent's descriptors."""
    async with running(kubelet, tmp_path) as (_, driver):
        for number in range(MOST_OF_A_POD):
            await kubelet.publish(name=f"v{number}")
        with pytest.raises(grpc.aio.AioRpcError, match="volumes of this driver already"):
            await kubelet.publish(name="more")
        assert not kubelet.target(name="more").exists()
        await kubelet.publish(uid=OTHER)  # another pod has its own
        await kubelet.publish(name="v0")  # the same again
        await kubelet.unpublish(name="v0")
        await kubelet.publish(name="more")
        assert driver.volumes == MOST_OF_A_POD + 1


@pytest.mark.parametrize("kind", ["link", "file"])
async def test_what_takes_the_place_of_a_new_socket_is_not_followed(
    kubelet: Kubelet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("")
    victim.chmod(0o600)

    class Swapped(socket.socket):
        def bind(self, address: Any, /) -> None:
            super().bind(address)
            Path(address).unlink()
            if kind == "link":
                Path(address).symlink_to(victim)
            else:
                os.link(victim, address)

    async with running(kubelet, tmp_path / "door") as (_, driver):
        monkeypatch.setattr(socket, "socket", Swapped)
        with pytest.raises(grpc.aio.AioRpcError):
            await kubelet.publish()
        monkeypatch.undo()
        assert driver.volumes == 0
        assert stat.S_IMODE(victim.stat().st_mode) == 0o600


async def test_a_directory_that_is_swapped_while_a_volume_is_removed_is_not_followed(
    kubelet: Kubelet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_pod: object
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "mount").mkdir(parents=True)
    async with running(kubelet, tmp_path / "door"):
        await kubelet.publish()
        above = kubelet.target().parent
        unlink = os.unlink

        def swap(name: str, *, dir_fd: int | None = None) -> None:
            unlink(name, dir_fd=dir_fd)
            if not above.is_symlink():
                above.rename(above.with_name("moved"))
                above.symlink_to(elsewhere)

        monkeypatch.setattr(os, "unlink", swap)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await kubelet.unpublish()
        monkeypatch.undo()
    assert (elsewhere / "mount").is_dir()


async def test_directories_that_the_kubelet_made_for_sub_paths_keep_no_pod_from_ending(
    kubelet: Kubelet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_pod: object
) -> None:
    """A pod's author names them (``subPath``), and the kubelet makes those that are missing."""
    monkeypatch.setattr(volume_files, "MOST_REMOVED", 2000)
    async with running(kubelet, tmp_path / "run"):
        await kubelet.publish()
        target = kubelet.target()
        for each in ("a", ".sds.sock.new", ".sds.moved.0"):
            (target / each / "b").mkdir(parents=True)
        here = os.open(target, os.O_RDONLY)
        for _ in range(1500):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)
        await kubelet.unpublish()
        assert not target.exists()
        # What is somebody's stays, and the kubelet asks again.
        await kubelet.publish()
        (target / "a").mkdir()
        (target / "a" / "precious").touch()
        with pytest.raises(grpc.aio.AioRpcError, match="cannot be removed: Directory not empty"):
            await kubelet.unpublish()
        assert (target / "a" / "precious").exists()


async def test_very_many_directories_in_a_volume_go_over_several_requests(
    kubelet: Kubelet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_pod: object
) -> None:
    """Other pods' volumes wait meanwhile."""
    monkeypatch.setattr(volume_files, "MOST_REMOVED", 10)
    async with running(kubelet, tmp_path / "run"):
        await kubelet.publish()
        for number in range(15):
            (kubelet.target() / str(number)).mkdir()
        with pytest.raises(grpc.aio.AioRpcError, match="it has more than 10 directories"):
            await kubelet.unpublish()
        await kubelet.unpublish()
        assert not kubelet.target().exists()


async def test_a_pods_directory_that_cannot_be_listed_keeps_no_other_pod_back(
    kubelet: Kubelet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_pod: object
) -> None:
    for uid in (UID, OTHER):
        kubelet.record(uid)
    glob = Path.glob

    def fails(path: Path, pattern: str) -> Iterator[Path]:
        if path.name == UID:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return iter(list(glob(path, pattern)))

    monkeypatch.setattr(Path, "glob", fails)
    async with running(kubelet, tmp_path) as (_, driver):
        assert driver.volumes == 1
        assert driver.failures == {"csi_volume": 1}


async def test_250_pods_come_and_go_and_nothing_is_left(
    kubelet: Kubelet, tmp_path: Path, in_pod: object
) -> None:
    uids = [f"{number:08x}-5f0c-4f3e-8f6c-0c7a7bd1f3c1" for number in range(250)]
    async with running(kubelet, tmp_path / "run") as (_, driver):
        before = descriptors()
        for uid in uids:
            await kubelet.publish(uid)
        assert driver.volumes == 250
        for uid in uids:
            await kubelet.unpublish(uid)
        assert driver.volumes == 0
        await nothing_stays_open(before)
    assert not list(kubelet.root.glob("pods/*/volumes/*/*/mount"))


async def paths_offered(kubelet: Kubelet, *, besides: set[str]) -> set[str]:
    """Sockets for the kubelet's plugin watcher, once they are others than these."""
    while (found := {each.name for each in kubelet.registry.iterdir()}) <= besides:
        await asyncio.sleep(0.01)
    return found


async def info(kubelet: Kubelet, name: str) -> registration_pb2.PluginInfo:
    """What the kubelet hears at a path of its plugin watcher."""
    async with grpc.aio.insecure_channel(f"unix:{kubelet.registry / name}") as channel:
        call = channel.unary_unary(
            "/pluginregistration.Registration/GetInfo",
            request_serializer=registration_pb2.InfoRequest.SerializeToString,
            response_deserializer=registration_pb2.PluginInfo.FromString,
        )
        return await call(registration_pb2.InfoRequest())


async def test_a_kubelet_that_waits_before_it_tries_the_path_again_gets_another_one(
    kubelet: Kubelet,
) -> None:
    """As after a reboot: it found the socket of a dead agent, and waits up to two minutes."""
    usual = f"{NAME}-reg.sock"
    service = RegistrationService(name=NAME, endpoint="/csi.sock")
    async with registered(service, kubelet.registry, clock=SystemClock(), patience=0):
        (fresh,) = await paths_offered(kubelet, besides={usual, ""})
        assert fresh != usual
        assert fresh.endswith("-reg.sock")
        assert (await info(kubelet, fresh)).name == NAME
    assert not list(kubelet.registry.iterdir())


async def test_a_path_that_cannot_be_made_is_tried_again(
    kubelet: Kubelet, caplog: pytest.LogCaptureFixture
) -> None:
    service = RegistrationService(name=NAME, endpoint="x")
    async with registered(service, kubelet.registry, clock=SystemClock(), patience=0.05):
        shutil.rmtree(kubelet.registry)
        while not caplog.records or "cannot learn" not in caplog.text:
            await asyncio.sleep(0.01)
        kubelet.registry.mkdir()
        while not list(kubelet.registry.iterdir()):
            await asyncio.sleep(0.01)
        assert caplog.text.count("cannot learn") == 1


async def test_a_kubelet_that_asks_keeps_its_path(kubelet: Kubelet) -> None:
    service = RegistrationService(name=NAME, endpoint="/csi.sock")
    service.asked.set()
    async with registered(service, kubelet.registry, clock=SystemClock(), patience=0):
        await asyncio.sleep(0)
        assert (await info(kubelet, f"{NAME}-reg.sock")).name == NAME


@pytest.mark.parametrize("left", [f"{NAME}-reg.sock", f"{NAME}-0a1b2c3d-reg.sock"])
async def test_the_path_of_an_agent_that_crashed_is_used_again(kubelet: Kubelet, left: str) -> None:
    """The kubelet may know the driver by it, and refuses the same one under a second path."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(kubelet.registry / left))
    service = RegistrationService(name=NAME, endpoint="/csi.sock")
    async with registered(service, kubelet.registry, clock=SystemClock()):
        assert [each.name for each in kubelet.registry.iterdir()] == [left]
        assert (await info(kubelet, left)).name == NAME
        assert service.asked.is_set()
    assert not list(kubelet.registry.iterdir())


async def test_the_path_of_a_driver_with_a_longer_name_is_left_alone(kubelet: Kubelet) -> None:
    others = kubelet.registry / f"{NAME}-other-reg.sock"
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(others))
        living.listen()
        service = RegistrationService(name=NAME, endpoint="/csi.sock")
        async with registered(service, kubelet.registry, clock=SystemClock()):
            assert (await info(kubelet, f"{NAME}-reg.sock")).name == NAME
    assert list(kubelet.registry.iterdir()) == [others]


async def test_the_kubelet_is_told_who_the_driver_is(kubelet: Kubelet, tmp_path: Path) -> None:
    async with running(kubelet, tmp_path / "run"):
        told = await kubelet.call(
            "/pluginregistration.Registration/GetInfo",
            registration_pb2.InfoRequest(),
            registration_pb2.PluginInfo,
        )
        assert told == registration_pb2.PluginInfo(
            type="CSIPlugin",
            name=NAME,
            endpoint=str(kubelet.root / "plugins" / NAME / "csi.sock"),
            supported_versions=["1.0.0"],
        )
        for ok in (True, False):
            await kubelet.call(
                "/pluginregistration.Registration/NotifyRegistrationStatus",
                registration_pb2.RegistrationStatus(plugin_registered=ok, error="" if ok else "no"),
                registration_pb2.RegistrationStatusResponse,
            )
        info = await kubelet.call(
            "/csi.v1.Identity/GetPluginInfo",
            csi_pb2.GetPluginInfoRequest(),
            csi_pb2.GetPluginInfoResponse,
        )
        assert isinstance(info, csi_pb2.GetPluginInfoResponse)
        assert info.name == NAME
        ready = await kubelet.call(
            "/csi.v1.Identity/Probe", csi_pb2.ProbeRequest(), csi_pb2.ProbeResponse
        )
        assert isinstance(ready, csi_pb2.ProbeResponse)
        assert ready.ready.value
        node = await kubelet.call(
            "/csi.v1.Node/NodeGetInfo", csi_pb2.NodeGetInfoRequest(), csi_pb2.NodeGetInfoResponse
        )
        assert isinstance(node, csi_pb2.NodeGetInfoResponse)
        assert node.node_id
