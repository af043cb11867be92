"""Runs ``sds ca`` from its configuration: joins the parts, serves, drains on a signal.

Invariants: every fault of the configuration is reported before the port opens; the first SIGTERM or
SIGINT drains, a second one ends at once; SIGHUP reads the policy, revocation lists, collateral and
the TLS certificate again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import TYPE_CHECKING

from sds.attestation.build import Verification, keyed, make_attester
from sds.attestation.kubernetes.token import TokenAttester
from sds.attestation.settings import VerificationSection
from sds.attestation.verifier import EvidenceVerifier
from sds.backoff import QUICK, Retry
from sds.ca.app import AuthorityParts, RunningAuthority, running_authority
from sds.ca.capacity import connections_of
from sds.ca.config import AuthorityConfig, OperatorSection, UpstreamSection
from sds.ca.journal import Journal
from sds.ca.kubernetes import check_kubernetes, kubernetes_tokens
from sds.ca.observer import AuthorityObserver, SilentObserver
from sds.ca.oversights import oversights
from sds.ca.signed_policy import SignedIssuancePolicy
from sds.ca.signer_source import signer_source, upstream_client, upstream_verification
from sds.ca.signers import HOPELESS_SIGNER
from sds.ca.tls import ServerTls, self_signed_tls
from sds.ca.tls_files import FollowedTls
from sds.clock import Clock, SystemClock
from sds.descriptors import take_all
from sds.errors import ConfigurationError
from sds.files import is_folder, replace_file
from sds.first_process import let_end
from sds.operations.hangup import on_hangup
from sds.operations.health import health_listener
from sds.operations.notify import READY, STOPPING, notify
from sds.operations.readiness import Readiness, authority_readiness
from sds.policy.holder import PolicyHolder
from sds.policy.reload import PolicyFiles
from sds.policy.verification import PolicyVerifier, Role
from sds.settings.checking import ConfigurationChecks
from sds.supervision import first_error, supervised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sds.attestation.evidence import Attester, Verifier
    from sds.ca.issuance import IssuancePolicy

_LOGGER = logging.getLogger(__name__)


async def serve(
    config: AuthorityConfig,
    *,
    ready: Callable[[int], None],
    clock: Clock | None = None,
    stop: asyncio.Event | None = None,
    observer: AuthorityObserver | None = None,
) -> None:
    """Serve until a signal (or ``stop``) ends it.

    Args:
        config: the configuration.
        ready: is called with the port once certificates can be signed.
        clock: time.
        stop: ends the authority like SIGTERM.
        observer: measures it.

    Raises:
        ConfigurationError: a file or address of the configuration cannot be used.
    """
    try:
        await _serve(
            config,
            ready=ready,
            clock=clock if clock is not None else SystemClock(),
            stop=stop if stop is not None else asyncio.Event(),
            observer=observer if observer is not None else SilentObserver(),
        )
    except BaseExceptionGroup as group:
        raise first_error(group) from group


async def _serve(
    config: AuthorityConfig,
    *,
    ready: Callable[[int], None],
    clock: Clock,
    stop: asyncio.Event,
    observer: AuthorityObserver,
) -> None:
    descriptors = take_all()
    attester = make_attester(config.attestation)
    if attester is not None:
        attester = keyed(attester, config.attestation)
    verification = Verification(config.verification, clock=clock)
    upstream = upstream_verification(config, clock)
    _say_what_vouches(config, attester)
    async with contextlib.AsyncExitStack() as stack:
        files, policy, verifier = _policy(config, verification, clock, observer)
        if config.kubernetes is not None:
            policy, verifier = await stack.enter_async_context(
                kubernetes_tokens(
                    config.kubernetes,
                    trust_domain=config.trust_domain,
                    policy=policy,
                    policy_decides=config.policy is not None,
                    verifier=verifier,
                    clock=clock,
                )
            )
        parts = AuthorityParts(
            trust_domain=config.trust_domain,
            listen=config.listen,
            tls=_tls(config, clock),
            source=await stack.enter_async_context(
                signer_source(
                    config, attester, upstream, None if files is None else files.holder, clock
                )
            ),
            retry=_retry(clock, files),
            policy=policy,
            verifier=observer.verifier(verifier),
            # A token is only for the authority above; it proves nothing to our callers.
            attester=None
            if attester is None or isinstance(attester, TokenAttester)
            else observer.attester(attester),
            clock=clock,
            max_lifetime=config.max_lifetime,
            backdate=config.backdate,
            limits=config.limits.limits(),
            connections=connections_of(config, descriptors),
            nonce_limit=config.limits.nonces,
            journal=Journal(keep=config.limits.records, decided=observer.decided),
            answered=observer.answered,
        )
        authority = await stack.enter_async_context(running_authority(parts))
        observer.signs_until(authority.signing.not_after, authority.signing.remaining)
        observer.watch_port(authority.connections)
        holder = None if files is None else files.holder
        if holder is not None:
            observer.watch_policy(holder)

        def readiness() -> Readiness:
            return authority_readiness(
                able=authority.signing.able,
                no_policy="" if holder is None else holder.absence,
                tls_ended=clock.now().wall >= parts.tls.not_after,
                draining=stop.is_set(),
            )

        observer.watch_readiness(readiness)
        await stack.enter_async_context(health_listener(config.health, lambda: readiness().ready))
        judging = [one for one in (verification, upstream) if one is not None]
        observer.watch_collateral(*judging)
        asked = [one.files.ask for one in judging] + ([] if files is None else [files.ask])
        if isinstance(parts.tls, FollowedTls):
            asked.append(parts.tls.ask)
        stack.enter_context(on_hangup(*asked))
        stack.enter_context(_ended_by_signals(stop))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        running = [tasks.create_task(_tell_ready(authority, config, holder, ready), name="ready")]
        running += [
            tasks.create_task(supervised(name, run, clock=clock), name=name)
            for one in (verification, upstream)
            if one is not None
            for name, run in one.tasks()
        ]
        if isinstance(parts.tls, FollowedTls):
            follow = supervised("tls-files", parts.tls.follow, clock=clock)
            running.append(tasks.create_task(follow, name="tls-files"))
        if config.collateral is not None:
            # This loads an HTTP client, so only a process that fetches imports it.
            from sds.ca.collateral import collateral_listener  # noqa: PLC0415  see above

            await stack.enter_async_context(
                collateral_listener(config.collateral, verification, tasks, clock=clock)
            )
        if files is not None:
            running += [
                tasks.create_task(supervised(name, run, clock=clock), name=name)
                for name, run in (
                    ("policy-files", files.follow),
                    ("policy", files.holder.run),
                )
            ]
        await stop.wait()
        notify(STOPPING)
        _LOGGER.info("the authority is draining")
        for task in running:
            task.cancel()


def check(config: AuthorityConfig, *, what: str, clock: Clock | None = None) -> tuple[str, ...]:
    """Do everything that a start does before it opens a port, without touching the network.

    Args:
        config: the configuration, which is valid by itself.
        what: names it in errors: the file.
        clock: gives the time at which files must be valid; the system's clock if left out.

    Returns:
        What an operator should not overlook, a sentence each.

    Raises:
        ConfigurationError: files, devices or addresses cannot be used; every one is named.
    """
    clock = clock if clock is not None else SystemClock()
    checks = ConfigurationChecks(what, now=clock.now().wall)
    attester = upstream = None
    # Usable values replace unusable ones, so that the rest is checked too.
    verification = Verification(VerificationSection(), clock=clock)
    with checks.of("attestation"):
        attester = make_attester(config.attestation)
    with checks.of("verification"):
        verification = Verification(config.verification, clock=clock)
    if config.verification.fills is not None:
        checks.writable_directory("verification.collateral", config.verification.fills)
    if config.collateral is not None:
        with checks.of("collateral"):
            if config.verification.fetch is None:
                raise ConfigurationError(
                    "collateral: this authority fetches none, so it has none to serve",
                    advice="set verification.collateral and verification.fetch",
                )
    with checks.of("policy"):
        files, _, _ = _policy(config, verification, clock, SilentObserver())
        if files is not None and (why := files.holder.absence):
            raise ConfigurationError(f"policy: {files.holder.last_error or why}")
    out = config.tls.certificate_out
    with checks.of("tls"):
        _tls(config, clock, write=False)
    if out is not None:
        checks.replaceable_file("tls.certificate_out", out)
    if isinstance(config.signer, OperatorSection):
        checks.replaceable_file("signer.csr_file", config.signer.csr_file)
        chain = config.signer.chain_file
        if not is_folder(chain.parent):
            checks.problem("signer.chain_file", f"there is no directory {chain.parent}")
        checks.roots("signer.roots_file", config.signer.roots_file)
    elif isinstance(config.signer, UpstreamSection):
        with checks.of("signer"):
            upstream = upstream_verification(config, clock)
            _check_upstream(config, config.signer, attester, upstream, clock)
    if config.kubernetes is not None:
        check_kubernetes(config.kubernetes, checks)
    checks.listeners(
        {
            "listen": config.address,
            "health.listen": None if config.health is None else config.health.address(),
            "metrics.listen": None if config.metrics is None else config.metrics.address(),
            "collateral.listen": None if config.collateral is None else config.collateral.address(),
        }
    )
    checks.raise_all()
    return tuple(oversights(config))


def _check_upstream(
    config: AuthorityConfig,
    section: UpstreamSection,
    attester: Attester | None,
    upstream: Verification | None,
    clock: Clock,
) -> None:
    if attester is None and config.attestation.kind is not None:
        section.authority.settings()  # why there is no attester is said already
    else:
        upstream_client(section, attester, upstream, None, clock)


def _say_what_vouches(config: AuthorityConfig, attester: Attester | None) -> None:
    for sentence in oversights(config):
        _LOGGER.warning(sentence)
    if attester is None:
        _LOGGER.warning(
            "this authority gives no evidence: only agents that trust a configured root and "
            "server name accept it",
            extra={"trust_domain": config.trust_domain},
        )
    if config.kubernetes is not None:
        _LOGGER.warning(
            "Kubernetes tokens count as evidence: anyone who controls the API server can "
            "have every identity of its pods",
            extra={"issuer": config.kubernetes.issuer},
        )
        if config.kubernetes.unbound_tokens:
            _LOGGER.warning("projected tokens are accepted: they bind nothing")


def _tls(config: AuthorityConfig, clock: Clock, *, write: bool = True) -> ServerTls:
    section = config.tls
    if section.certificate is not None and section.key is not None:
        return FollowedTls(section.certificate, section.key, clock=clock)
    tls = self_signed_tls(server_names=section.server_names)
    if section.certificate_out is not None and write:
        try:
            replace_file(section.certificate_out, tls.certificate_pem, mode=0o644)
        except OSError as error:
            raise ConfigurationError(
                f"tls.certificate_out: {section.certificate_out} cannot be written: "
                f"{error.strerror}",
                advice="name a file in a directory that this user may write; it is replaced there",
            ) from error
    return tls


def _policy(
    config: AuthorityConfig,
    verification: Verification,
    clock: Clock,
    observer: AuthorityObserver,
) -> tuple[PolicyFiles | None, IssuancePolicy, Verifier]:
    if config.policy is None:
        return None, config.issuance(), _verifier(config, verification)
    holder = PolicyHolder(config.policy.start(config.trust_domain), clock=clock, watcher=observer)
    files = PolicyFiles(config.policy.place, holder, clock=clock)
    files.load()
    verifier = PolicyVerifier(
        holder,
        role=Role.AGENTS,
        configured=config.verification.reference_values,
        make=verification.verifier,
    )
    return files, SignedIssuancePolicy(holder), verifier


def _verifier(config: AuthorityConfig, verification: Verification) -> Verifier:
    verifier = verification.verifier()
    # No rule can name something unmeasured, so such evidence is refused unread.
    return verifier if config.identities else EvidenceVerifier({})


def _retry(clock: Clock, files: PolicyFiles | None) -> Retry:
    """Return when to ask again for the authority's own certificate: at once under a new policy."""
    retry = Retry(clock, QUICK, hopeless=HOPELESS_SIGNER)
    if files is not None:
        files.holder.listen(retry.changed)
    return retry


async def _tell_ready(
    authority: RunningAuthority,
    config: AuthorityConfig,
    holder: PolicyHolder | None,
    ready: Callable[[int], None],
) -> None:
    await authority.signing.ready.wait()
    if holder is not None:
        await _in_force(holder)
    notify(READY)
    _LOGGER.info(
        "the authority is ready",
        extra={"trust_domain": config.trust_domain, "port": authority.port},
    )
    ready(authority.port)


async def _in_force(holder: PolicyHolder) -> None:
    """Return as soon as a policy is in force."""
    changed = asyncio.Event()
    stop = holder.listen(changed.set)
    try:
        while why := holder.absence:
            changed.clear()
            _LOGGER.warning("the authority is not ready: no policy is in force: %s", why)
            await changed.wait()
    finally:
        stop()


@contextlib.contextmanager
def _ended_by_signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    handled = [signal.SIGTERM, signal.SIGINT]

    def end() -> None:
        stop.set()
        for number in handled:  # a second signal ends the process at once
            loop.remove_signal_handler(number)
            let_end(number)

    for number in handled:
        loop.add_signal_handler(number, end)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
