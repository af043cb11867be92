"""Notices that the configuration file is not the one any more with which this process started.

A configuration is read once, at the start. Owns the comparison with the file as it is now, once a
minute and at SIGHUP. Invariants: nothing of a later file comes into force; whoever changes the file
is told that this needs a restart, and whether the restart would fail; the file is read outside the
event loop; a file system that hangs takes one thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import stat
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from pydantic import BaseModel

from sds import threads
from sds.errors import ConfigurationError
from sds.operations.hangup import on_hangup
from sds.problems import Problems
from sds.settings.yamlfile import parse, read, validate
from sds.supervision import supervised

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sds.clock import Clock

_LOGGER = logging.getLogger(__name__)
_EVERY_SECONDS: Final = 60.0
_ANSWER_SECONDS: Final = 30.0
M = TypeVar("M", bound=BaseModel)


class ConfigurationFile(Generic[M]):
    """The configuration of this process, and its file.

    Args:
        path: the file; a pipe is read once and never looked at again.
        model: what it is read into.

    Attributes:
        config: the configuration in force.

    Raises:
        ConfigurationError: the file cannot be used.
    """

    def __init__(self, path: Path, model: type[M]) -> None:
        self._path = path
        self._model = model
        content = read(path)
        self.config = validate(parse(content, what=str(path)), model, what=str(path))
        self._digest = hashlib.sha256(content).digest()
        self._asked = asyncio.Event()
        self._problems = Problems()

    def notices(self) -> tuple[str, ...]:
        """Return that the file changed; nothing while it is as at the start."""
        return self._problems.now()

    @contextlib.asynccontextmanager
    async def followed(self, *, clock: Clock) -> AsyncIterator[None]:
        """Look at the file while the block runs."""
        if not await threads.CONFIGURATION.run(_is_ordinary, self._path):
            yield
            return
        task = asyncio.create_task(supervised("configuration file", self._follow, clock=clock))
        try:
            with on_hangup(self._ask):
                yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    def _ask(self) -> None:
        self._problems.tell_again()
        self._asked.set()

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EVERY_SECONDS):
                    await self._asked.wait()
            self._asked.clear()
            with contextlib.suppress(TimeoutError):  # what does not answer says nothing new
                async with asyncio.timeout(_ANSWER_SECONDS):
                    self._say(await threads.CONFIGURATION.run(self._difference))

    def _say(self, difference: str) -> None:
        extra = {"path": str(self._path)}
        if not difference:
            if self._problems.over():
                _LOGGER.info("%s is again as at the start", self._path, extra=extra)
        elif self._problems.is_news(difference):
            _LOGGER.warning("%s", difference, extra=extra)

    def _difference(self) -> str:
        """Return what is different now, in a sentence; nothing if the file is the same."""
        try:
            content = read(self._path)
            if hashlib.sha256(content).digest() == self._digest:
                return ""
            what = str(self._path)
            validate(parse(content, what=what), self._model, what=what)
        except ConfigurationError as error:
            return f"the configuration changed after the start, and a restart would fail: {error}"
        return (
            f"the configuration {self._path} changed after the start: what this process began with "
            "stays in force until it is restarted"
        )


def _is_ordinary(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True  # it was read a moment ago, so it may come back
