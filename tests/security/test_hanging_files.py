"""A configured file on a file system that hangs delays neither answers nor the end of a process."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from sds.clock import SystemClock
from tests.e2e.test_ca_process import Site, client, issue_one, port
from tests.security.test_executables import served_by_its_user
from tests.support import need
from tests.support.front_door import until
from tests.support.machines import crl
from tests.support.node import chips

pytestmark = [pytest.mark.e2e, pytest.mark.root]


async def test_an_authority_goes_on_and_ends(tmp_path: Path) -> None:
    need.root()
    site = Site(tmp_path)
    (tmp_path / "list").write_bytes(crl(chips(), now=SystemClock().now().wall))
    async with served_by_its_user(tmp_path, content=tmp_path / "list") as (path, mode):
        verification = {"trusted_roots": [str(site.ark)], "revocation_lists": [str(path)]}
        async with (
            site.authority(verification=verification) as process,
            client(await port(process)) as authority,
        ):
            mode.write_text("hang")
            for _ in range(3):  # more often than there are threads for it
                process.signal(signal.SIGHUP)
                await issue_one(authority)
            await authority.aclose()
            process.signal(signal.SIGTERM)
            # The program ends. The kernel keeps a thread that waits for FUSE, even of a killed
            # process, until it is answered (fs/fuse/dev.c, request_wait_answer).
            await until(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "Z")
            mode.write_text("ok")
            assert await process.wait() == 0
