"""Keeps the foreign bundles in the store fresh, with one task for each trust domain.

Owns when each bundle is fetched again and what an answer means. Decisions are pure functions; the
task only calls them. Invariants: after a failed fetch the last good bundle stays, and the observer
is told; an empty bundle, or a source that is no longer configured, withdraws the bundle; after a
change of the roots that an operator or the policy gives, an endpoint is verified under them first.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, ParamSpec, Protocol, TypeVar

from sds.backoff import Backoff
from sds.clock import sleep_elapsed
from sds.errors import BundleError, ConfigurationError, SdsError
from sds.faults import report
from sds.federation import document, endpoint
from sds.files import read_file
from sds.problems import Problems
from sds.threads import alone
from sds.untrusted_input import ends_one_thing, words_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime
    from pathlib import Path

    from sds.clock import Clock
    from sds.federation.document import BundleDocument
    from sds.federation.endpoint import BundleServer
    from sds.identity import TrustDomain
    from sds.secrets.store import SecretStore

_LOGGER = logging.getLogger(__name__)
DEFAULT_REFRESH: Final = timedelta(minutes=5)  # SPIFFE Federation, section 5.1.4
FILE_REFRESH: Final = timedelta(seconds=5)
_SOONEST: Final = timedelta(seconds=1)
_HINTED: Final = (timedelta(minutes=1), timedelta(days=1))
"""The shortest and longest refresh hint that counts. Every change goes to every subscriber, and
whoever has a publisher's endpoint for an hour must not keep their roots in force for a month."""
_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleSource:
    """Where one foreign trust domain's bundle comes from.

    Attributes:
        trust_domain: the trust domain that the bundle belongs to.
        endpoint: a bundle endpoint; None if only ``file`` is given.
        file: a bundle document or PEM roots: the bundle itself, or with ``https_spiffe`` the
            first bundle under which the endpoint is verified.
        roots: roots that came otherwise (from a signed policy), in DER.
        refresh: how often to fetch; None for the publisher's hint, within bounds, or five minutes
            without one.
    """

    trust_domain: TrustDomain
    endpoint: BundleServer | None = None
    file: Path | None = None
    roots: tuple[bytes, ...] = ()
    refresh: timedelta | None = None

    @property
    def given(self) -> tuple[Path | None, frozenset[bytes]]:
        """Return where the roots come from that do not come from the endpoint."""
        return self.file, frozenset(self.roots)


class FederationObserver(Protocol):
    """Is told how fetches went, for metrics."""

    def refreshed(self, trust_domain: TrustDomain, *, at: datetime, due: datetime) -> None:
        """Note that a bundle was fetched and verified, and when it is due to be fetched again."""
        ...

    def failed(self, trust_domain: TrustDomain, error: SdsError) -> None:
        """Note that a fetch failed; the last good bundle stays."""
        ...

    def forgotten(self, trust_domain: TrustDomain) -> None:
        """Note that the trust domain has no source any more."""
        ...


def next_wait(
    source: BundleSource,
    *,
    hint: timedelta | None,
    failures: int,
    jitter: float,
    later: float = 0.0,
) -> timedelta:
    """Return how long to wait before the next fetch.

    Args:
        source: the source to fetch next.
        hint: the publisher's refresh hint.
        failures: how many fetches failed since the last good one.
        jitter: a random number from 0 to 1.
        later: the seconds for which the publisher asks to be left alone.
    """
    regular = _regular_wait(source, hint)
    if failures == 0:
        return regular
    # However rarely a publisher wants to be asked, after an outage a new root must be known soon.
    backoff = Backoff(first=2.0, longest=min(regular, DEFAULT_REFRESH).total_seconds())
    asked = min(later, max(regular, DEFAULT_REFRESH).total_seconds())
    return max(_SOONEST, timedelta(seconds=max(asked, backoff.seconds(failures, draw=jitter))))


def _regular_wait(source: BundleSource, hint: timedelta | None) -> timedelta:
    default = FILE_REFRESH if source.endpoint is None else DEFAULT_REFRESH
    hinted = min(max(hint, _HINTED[0]), _HINTED[1]) if hint else default
    return max(_SOONEST, source.refresh or hinted)


def by_trust_domain(
    sources: Iterable[BundleSource], *, own: TrustDomain
) -> dict[TrustDomain, BundleSource]:
    """Return the source of each trust domain.

    Raises:
        ConfigurationError: a source names our own trust domain, or one appears twice.
    """
    found: dict[TrustDomain, BundleSource] = {}
    for source in sources:
        if source.trust_domain == own:
            raise ConfigurationError(
                f"federation names our own trust domain {own}",
                advice="the own bundle comes from the authority; take this entry out",
            )
        if source.trust_domain in found:
            raise ConfigurationError(
                f"federation names {source.trust_domain} twice",
                advice="a trust domain has one source: take the other entry out",
            )
        found[source.trust_domain] = source
    return found


class Federation:
    """Fetches every foreign bundle on time; ``run`` lives as long as its agent."""

    def __init__(
        self,
        store: SecretStore,
        sources: Iterable[BundleSource],
        *,
        own: TrustDomain,
        clock: Clock,
        observer: FederationObserver,
        random: Random,
    ) -> None:
        """Begin without sources; ``own`` is our trust domain, which no source may name."""
        self._store = store
        self._own = own
        self._clock = clock
        self._observer = observer
        self._random = random
        self._sources = by_trust_domain(sources, own=own)
        self._tasks: dict[TrustDomain, asyncio.Task[None]] = {}
        self._anew: set[TrustDomain] = set()
        """Those whose given roots changed: the endpoint is verified under them once more."""
        self._problems = Problems()
        """Why a bundle cannot be refreshed, as it was logged last."""
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Keep every bundle fresh until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                for source in self._sources.values():
                    self._start(source)
                await asyncio.Event().wait()
            finally:
                self._group = None

    def replace(self, sources: Iterable[BundleSource]) -> None:
        """Use these sources from now on, and withdraw the bundles of all others.

        Raises:
            ConfigurationError: a source names our own trust domain, or one appears twice.
        """
        new = by_trust_domain(sources, own=self._own)
        old, self._sources = self._sources, new
        self._anew |= {
            trust_domain
            for trust_domain, source in new.items()
            if (before := old.get(trust_domain)) is not None and before.given != source.given
        }
        self._anew &= new.keys()
        for trust_domain, source in old.items():
            if new.get(trust_domain) != source:
                self._problems.over(of=trust_domain)
                task = self._tasks.pop(trust_domain, None)
                if task is not None:
                    task.cancel()
                if trust_domain not in new:
                    self._store.withdraw_bundle(trust_domain)
                    self._observer.forgotten(trust_domain)
                    _LOGGER.info("federation ended", extra={"trust_domain": trust_domain})
        if self._group is not None:
            for trust_domain, source in new.items():
                if old.get(trust_domain) != source:
                    self._start(source)

    def _start(self, source: BundleSource) -> None:
        if self._group is not None:
            self._tasks[source.trust_domain] = self._group.create_task(
                self._keep(source), name=f"federation {source.trust_domain}"
            )

    async def _keep(self, source: BundleSource) -> None:
        failures = 0
        hint: timedelta | None = None
        seen: int | None = None
        while True:
            later = 0.0
            try:
                bundle = await self._load(source)
                if source.endpoint is not None:  # an operator who gives a file may take it back
                    document.require_no_older(bundle, seen=seen, where=source.endpoint.url)
                    seen = bundle.sequence if bundle.sequence is not None else seen
                self._anew.discard(source.trust_domain)
                self._apply(source, bundle)
            except SdsError as error:
                failures += 1
                later = error.later if isinstance(error, BundleError) else 0.0
                self._failed(source.trust_domain, error)
            except BaseException as error:  # the boundary between one source and the others
                if not ends_one_thing(error):
                    raise
                failures += 1
                report("federation source", error, trust_domain=source.trust_domain)
                self._failed(
                    source.trust_domain,
                    BundleError(
                        f"the bundle of {source.trust_domain} cannot be used: "
                        f"{type(error).__name__}: {words_of(error):.300}",
                        reason="bundle_malformed",
                    ),
                )
            else:
                failures, hint = 0, bundle.refresh_hint
                if self._problems.over(of=source.trust_domain):
                    _LOGGER.info(
                        "bundle refreshed again", extra={"trust_domain": source.trust_domain}
                    )
            wait = next_wait(
                source, hint=hint, failures=failures, jitter=self._random.random(), later=later
            )
            await sleep_elapsed(self._clock, wait.total_seconds())

    def _failed(self, trust_domain: TrustDomain, error: SdsError) -> None:
        self._observer.failed(trust_domain, error)
        if self._problems.is_news(error, of=trust_domain):
            _LOGGER.warning(
                "bundle not refreshed: %s",
                error,
                extra={"trust_domain": trust_domain, "reason": error.reason},
            )

    async def _load(self, source: BundleSource) -> BundleDocument:
        """Fetch and parse in a thread of its own: a source that hangs holds up no other one."""
        given = source.roots
        if source.file is not None:
            given = (await _alone(parse_bundle_file, source.file)).roots
        if source.endpoint is None:
            await _alone(_check_roots, source)
            return document.BundleDocument(roots=given)
        return await _alone(_fetch, source.endpoint, self._anchors(source, given))

    def _anchors(self, source: BundleSource, given: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Return the roots that verify an ``https_spiffe`` endpoint: the store's or ``given``.

        Those of the store count once the endpoint was verified under the present ``given`` ones:
        whoever replaces these may mean that an earlier root is no longer trustworthy.
        """
        server = source.endpoint.spiffe_id if source.endpoint is not None else None
        own = server is not None and server.trust_domain == source.trust_domain
        if own and given and source.trust_domain in self._anew:
            return given
        held = self._store.bundle(server.trust_domain) if server is not None else None
        return held.bundle.roots if held is not None else given

    def _apply(self, source: BundleSource, bundle: BundleDocument) -> None:
        trust_domain = source.trust_domain
        before = self._store.bundle(trust_domain)
        if bundle.roots:
            version = self._store.put_bundle(trust_domain, bundle.roots)
            changed = before is None or before.version != version
        else:
            self._store.withdraw_bundle(trust_domain)
            changed = before is not None
        now = self._clock.now().wall
        due = now + _regular_wait(source, bundle.refresh_hint)
        self._observer.refreshed(trust_domain, at=now, due=due)
        if changed:
            _LOGGER.info(
                "bundle changed",
                extra={"trust_domain": trust_domain, "roots": len(bundle.roots)},
            )


class Random(Protocol):
    """Draws jitter."""

    def random(self) -> float:
        """Return a number of at least 0 and less than 1."""
        ...


async def _alone(work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Do work in a thread of its own.

    Raises:
        BundleError: ``bundle_unavailable``: the system gives no thread now.
    """
    try:
        return await alone("federation", work, *args, **kwargs)
    except RuntimeError as error:
        raise BundleError(
            f"the bundle cannot be fetched now: {words_of(error)}", reason="bundle_unavailable"
        ) from error


def _fetch(given: endpoint.BundleServer, roots: tuple[bytes, ...]) -> BundleDocument:
    return document.parse(endpoint.fetch(given, roots=roots), where=given.url)


def parse_bundle_file(path: Path) -> BundleDocument:
    """Read a bundle document or PEM roots from a file.

    Raises:
        BundleError: the file cannot be read, or has neither form.
    """
    return document.parse_file(_read(path), where=str(path))


def _check_roots(source: BundleSource) -> None:
    for number, der in enumerate(source.roots, 1):
        document.usable_root(der, f"root {number} of {source.trust_domain} in the policy")


def _read(path: Path) -> bytes:
    try:
        return read_file(path, max_bytes=document.MAX_DOCUMENT_BYTES)
    except OSError as error:
        raise BundleError(
            f"bundle file {path} cannot be read: {error.strerror}", reason="bundle_unavailable"
        ) from error
