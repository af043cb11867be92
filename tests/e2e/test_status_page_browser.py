"""The status page in a real browser, without a screen."""

from __future__ import annotations

import asyncio
import struct
import subprocess
import zlib
from typing import TYPE_CHECKING

import aiohttp
import pytest

from sds.operations.http_listener import listening
from sds.operations.status_page.handler import handler
from sds.settings.listen import ListenAddress
from tests.support import need
from tests.support.page import troubled

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e
LOOPBACK = ListenAddress(host="127.0.0.1", port=0)


async def chromium(*arguments: str, profile: Path) -> str:
    """Run the browser once; what it printed."""
    program = need.tool("chromium")

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                f"--user-data-dir={profile}",
                *arguments,
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    ran = await asyncio.to_thread(run)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def average(png: bytes) -> float:
    """Mean brightness (0 to 255) of an 8-bit RGB or RGBA picture's top left pixels."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, _, depth, kind = struct.unpack(">IIBB", png[16:26])
    assert (depth, kind) in {(8, 2), (8, 6)}
    data, at = b"", 8
    while at < len(png):
        length = struct.unpack(">I", png[at : at + 4])[0]
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += 12 + length
    rows = zlib.decompress(data)
    channels = 3 if kind == 2 else 4
    assert len(rows) > width * channels
    # The first row is stored as differences to its left neighbour or as it is; its first pixel is
    # the same in both, and is the page's background.
    return sum(rows[1:4]) / 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_browser_shows_everything_in_both_schemes(tmp_path: Path, scheme: str) -> None:
    picture = tmp_path / "page.png"
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    async with listening(LOOPBACK, {"/": handler(troubled)}) as bound:
        url = f"http://127.0.0.1:{bound.port}/"
        document = await chromium("--dump-dom", *dark, url, profile=tmp_path / "one")
        await chromium(
            f"--screenshot={picture}",
            "--window-size=1200,1400",
            *dark,
            url,
            profile=tmp_path / "two",
        )
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in document
    assert 'id="readiness"' in document
    brightness = average(picture.read_bytes())
    assert brightness > 200 if scheme == "light" else brightness < 60


async def test_a_page_of_another_site_gets_nothing_and_headers_forbid_the_rest() -> None:
    async with (
        listening(LOOPBACK, {"/": handler(troubled)}) as bound,
        aiohttp.ClientSession() as session,
    ):
        url = f"http://127.0.0.1:{bound.port}/"
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
            async with session.get(url, headers={"Host": host}) as response:
                assert response.status == 403
        async with session.get(url) as response:
            assert response.status == 200
            policy = response.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; style-src 'nonce-")
            assert response.headers["Cache-Control"] == "no-store"
        async with session.post(url) as response:
            assert response.status == 405
