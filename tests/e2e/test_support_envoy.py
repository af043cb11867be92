"""The helpers that every end-to-end test stands on, against real Envoys."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support import grpcurl
from tests.support.envoy import VERSIONS, running_envoy, validate
from tests.support.process import output, running, sds

pytestmark = pytest.mark.e2e

LISTENER: dict[str, Any] = {
    "name": "hello",
    "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
    "filter_chains": [
        {
            "filters": [
                {
                    "name": "hello",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.network"
                        ".direct_response.v3.Config",
                        "response": {"inline_string": "hello"},
                    },
                }
            ]
        }
    ],
}
BOOTSTRAP = {"static_resources": {"listeners": [LISTENER]}}


async def hello(address: tuple[str, int]) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    said = await reader.read()
    writer.close()
    await writer.wait_closed()
    return said


async def test_two_envoys_at_once_answer_and_end(tmp_path: Path) -> None:
    async with (
        running_envoy(BOOTSTRAP, folder=tmp_path, name="one") as one,
        running_envoy(BOOTSTRAP, folder=tmp_path, name="two", version=VERSIONS[-1]) as two,
    ):
        await asyncio.gather(one.until_live(), two.until_live())
        assert await hello(await one.address("hello")) == b"hello"
        assert await hello(await two.address("hello")) == b"hello"
        await one.until_stat("listener.127.0.0.1_0.downstream_cx_total")
        assert await one.secrets() == {}
        assert await one.process.kill() == -signal.SIGKILL
        assert await hello(await two.address("hello")) == b"hello"
    assert two.process.returncode == 0


async def test_an_envoy_that_refuses_its_bootstrap_says_why(tmp_path: Path) -> None:
    broken = {"static_resources": {"listeners": [{**LISTENER, "nonsense": 1}]}}
    with pytest.raises(AssertionError, match="nonsense"):
        async with running_envoy(broken, folder=tmp_path):
            pass
    with pytest.raises(AssertionError, match="nonsense"):
        await validate(broken, folder=tmp_path)
    await validate(BOOTSTRAP, folder=tmp_path)


async def test_a_process_is_read_and_never_left_behind() -> None:
    script = "echo ready; sleep 60 & echo $!; wait"
    async with running(["bash", "-c", script], name="parent") as parent:
        await parent.line("ready")
        child = int((await parent.line(r"^\d+$")).group())
        with pytest.raises(AssertionError, match="never said 'nothing'"):
            await parent.line("nothing", seconds=0.1)
    status, state, _ = await output(["ps", "-o", "stat=", "-p", str(child)])
    assert status == 1 or state.strip().startswith("Z")
    assert (await output(sds("--version")))[1].startswith("sds")


async def test_grpcurl_is_built() -> None:
    status, said, errors = await grpcurl.grpcurl("-version")
    assert status == 0
    assert "grpcurl" in said + errors
