"""State of the world, case by case, against a running server over a Unix socket."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

import grpc
import pytest
from envoy.config.core.v3 import base_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_spiffe_validator_config_pb2

from sds.errors import WorkloadError
from sds.serving.encode import pem
from sds.serving.observer import Event
from sds.serving.secret_catalog import Aliases
from sds.serving.service import ServingOptions
from sds.workload.entitlement import Caller
from tests.support.front_door import until
from tests.support.serving import API, OTHER, TD, WEB, root, serving, svid
from tests.support.xds_client import SECRET, Sotw, channel, secrets

if TYPE_CHECKING:
    from pathlib import Path

    from envoy.extensions.transport_sockets.tls.v3 import secret_pb2

pytestmark = pytest.mark.usefixtures("transport")

ID = str(WEB.spiffe_id)
BUNDLE = f"spiffe://{TD}"


def validator(secret: secret_pb2.Secret) -> dict[str, bytes]:
    """Trust domain -> PEM bundle of a context with the SPIFFE validator, in order."""
    custom = secret.validation_context.custom_validator_config
    assert custom.name == "envoy.tls.cert_validator.spiffe"
    assert not secret.validation_context.HasField("trusted_ca")
    config = tls_spiffe_validator_config_pb2.SPIFFECertValidatorConfig()
    assert custom.typed_config.Unpack(config)
    return {domain.name: domain.trust_bundle.inline_bytes for domain in config.trust_domains}


async def test_one_request_for_two_names(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        await stream.ask("default", "ROOTCA")
        response = await stream.next()
        found = secrets(response)
        assert set(found) == {"default", "ROOTCA"}
        stored = at.store.svid(WEB)
        assert stored is not None
        certificate = found["default"].tls_certificate
        assert certificate.private_key.inline_bytes == stored.svid.private_key.reveal()
        assert certificate.certificate_chain.inline_bytes == pem(stored.svid.chain)
        assert found["ROOTCA"].validation_context.trusted_ca.inline_bytes == pem([root("one").der])
        assert response.type_url == SECRET
        assert response.version_info
        assert response.nonce
        await stream.ack(response, "default", "ROOTCA")
        await stream.silent()
        assert at.tally.events[Event.ACK] == 1


@pytest.mark.parametrize("names", [("default", "ROOTCA"), ("ROOTCA", "default")])
async def test_two_streams_on_one_connection_one_after_the_other(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        for name in names:
            assert set(secrets(await Sotw(connection).get(name))) == {name}


async def test_two_streams_on_one_connection_in_parallel(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        got = await asyncio.gather(
            *(Sotw(connection).get(name) for name in ("default", "ROOTCA") * 10)
        )
        assert [list(secrets(response)) for response in got] == [["default"], ["ROOTCA"]] * 10


async def test_alias_and_long_name_together(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        found = secrets(await Sotw(connection).get("default", ID, "ROOTCA", BUNDLE))
        assert set(found) == {"default", ID, "ROOTCA", BUNDLE}
        assert found["default"].tls_certificate == found[ID].tls_certificate
        assert found["ROOTCA"].validation_context == found[BUNDLE].validation_context


async def test_a_neighbours_secret_looks_absent(tmp_path: Path) -> None:
    """By its own name, while the store has it: as if it did not exist, also after a push of it."""
    async with serving(tmp_path) as at, channel(at.target) as connection:
        at.store.put_svid(svid(API))
        theirs, both, everything = Sotw(connection), Sotw(connection), Sotw(connection)
        await theirs.ask(str(API.spiffe_id), "spiffe://example.org/no-such")
        await theirs.silent()
        assert set(secrets(await both.get("default", str(API.spiffe_id)))) == {"default"}
        await everything.ask()
        assert str(API.spiffe_id) not in secrets(await everything.next())
        at.store.put_svid(svid(API, mark="new"))
        await theirs.silent()


async def test_each_configured_alias(tmp_path: Path) -> None:
    options = ServingOptions(
        aliases=Aliases(svid=("mine", "server"), bundle=("ca",), all_bundles=("everyone",))
    )
    async with serving(tmp_path, options=options) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        names = ("mine", "server", "ca", "everyone", "default", "ROOTCA", "ALL")
        found = secrets(await stream.get(*names))
        assert set(found) == {"mine", "server", "ca", "everyone"}


async def test_foreign_bundles_are_the_spiffe_validator(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        at.store.put_bundle(OTHER, [root("other").der])
        found = secrets(await Sotw(connection).get(BUNDLE, f"spiffe://{OTHER}", "ALL"))
        assert found[BUNDLE].validation_context.HasField("trusted_ca")
        assert validator(found[f"spiffe://{OTHER}"]) == {OTHER: pem([root("other").der])}
        everyone = validator(found["ALL"])
        assert list(everyone) == sorted([TD, OTHER])
        assert everyone[TD] == pem([root("one").der])


async def test_all_is_one_secret_that_follows_every_bundle(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        first = await stream.get("ALL")
        assert list(validator(secrets(first)["ALL"])) == [TD]
        at.store.put_bundle(OTHER, [root("other").der])
        second = await stream.next()
        assert list(validator(secrets(second)["ALL"])) == [TD, OTHER]
        await stream.ack(second, "ALL")
        at.store.withdraw_bundle(OTHER)
        third = await stream.next()
        assert list(validator(secrets(third)["ALL"])) == [TD]
        assert len({first.version_info, second.version_info, third.version_info}) == 3


async def test_the_own_bundle_is_the_spiffe_validator_by_configuration(tmp_path: Path) -> None:
    options = ServingOptions(spiffe_validator=True)
    async with serving(tmp_path, options=options) as at, channel(at.target) as connection:
        found = secrets(await Sotw(connection).get("ROOTCA"))
        assert list(validator(found["ROOTCA"])) == [TD]


async def test_node_metadata_strengthens_a_context_for_its_stream_only(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        node = base_pb2.Node(id="n")
        node.metadata.update({"attested-sds.validator": "spiffe"})
        strong, plain = Sotw(connection), Sotw(connection)
        await strong.ask("ROOTCA", node=node)
        assert list(validator(secrets(await strong.next())["ROOTCA"])) == [TD]
        found = secrets(await plain.get("ROOTCA"))
        assert found["ROOTCA"].validation_context.HasField("trusted_ca")


async def test_node_metadata_never_weakens_a_context(tmp_path: Path) -> None:
    options = ServingOptions(spiffe_validator=True)
    async with serving(tmp_path, options=options) as at, channel(at.target) as connection:
        node = base_pb2.Node(id="n")
        node.metadata.update({"attested-sds.validator": "trusted_ca"})
        stream = Sotw(connection)
        await stream.ask("ROOTCA", node=node)
        assert list(validator(secrets(await stream.next())["ROOTCA"])) == [TD]


async def test_the_node_changes_nothing_about_who_the_caller_is(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        at.store.put_svid(svid(API))
        node = base_pb2.Node(id=str(API.spiffe_id), cluster="api")
        node.metadata.update({"WORKLOAD_NAME": "api", "NAMESPACE": "api"})
        stream = Sotw(connection)
        await stream.ask(str(API.spiffe_id), node=node)
        await stream.silent()
        assert at.tally.events[Event.ABSENT] == 1


async def test_the_node_is_needed_on_no_request(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        await stream.ask("default", node=None)
        await stream.ack(await stream.next(), "default")
        at.store.put_svid(svid())
        assert set(secrets(await stream.next())) == {"default"}


async def test_a_request_before_the_secret_exists_is_answered_when_it_does(tmp_path: Path) -> None:
    async with serving(tmp_path, empty=True) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        await stream.ask("default", "ROOTCA")
        await stream.silent()
        at.store.put_bundle(TD, [root("one").der])
        response = await stream.next()
        assert set(secrets(response)) == {"ROOTCA"}
        await stream.ack(response, "default", "ROOTCA")
        at.store.put_svid(svid())
        assert set(secrets(await stream.next())) == {"default"}


async def test_an_update_is_pushed_and_a_key_is_released_when_it_is_acked(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        first = await stream.get("default")
        await stream.silent()
        old = at.store.svid(WEB)
        assert old is not None
        new = svid()
        at.store.put_svid(new)
        second = await stream.next()
        assert second.version_info != first.version_info
        assert old.svid.key_id in at.store.held_keys()
        await stream.ack(second, "default")
        await until(lambda: old.svid.key_id not in at.store.held_keys())
        assert new.key_id in at.store.held_keys()
        stream.cancel()
        await until(lambda: new.key_id not in at.store.held_keys())


async def test_a_bundle_change_pushes_only_the_bundle(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        certificate, bundle = Sotw(connection), Sotw(connection)
        await certificate.get("default")
        await bundle.get("ROOTCA")
        at.store.put_bundle(TD, [root("one").der, root("two").der])
        response = await bundle.next()
        assert set(secrets(response)) == {"ROOTCA"}
        await certificate.silent()
        await bundle.ack(response, "ROOTCA")
        at.store.put_svid(svid())
        assert set(secrets(await certificate.next())) == {"default"}
        await bundle.silent()


async def test_on_a_stream_with_both_only_what_changed_is_sent(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        await stream.get("default", "ROOTCA")
        at.store.put_svid(svid())
        assert set(secrets(await stream.next())) == {"default"}


async def test_an_equal_bundle_is_not_pushed(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        await stream.get("ROOTCA")
        at.store.put_bundle(TD, [root("one").der])
        await stream.silent()


async def test_a_nack_is_answered_by_silence_and_the_next_content_is_sent(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream, other = Sotw(connection), Sotw(connection)
        await other.get("default")
        await stream.ask("default")
        refused = await stream.next()
        await stream.nack(refused, "default", error="no good")
        await stream.silent()
        assert at.tally.events[Event.NACK] == 1
        at.store.put_svid(svid())
        assert (await stream.next()).version_info != refused.version_info
        await other.next()


async def test_a_nack_is_known_by_its_error_not_by_its_version(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        await stream.ask("default")
        response = await stream.next()
        await stream.ask(
            "default", nonce=response.nonce, version=response.version_info, error="refused"
        )
        await stream.silent()
        assert at.tally.events[Event.NACK] == 1
        assert at.tally.events[Event.ACK] == 0
        second = Sotw(connection)
        await second.ask("default")
        response = await second.next()
        await second.ask("default", nonce=response.nonce, version="")
        await second.silent()
        assert at.tally.events[Event.ACK] == 1


async def test_of_several_that_are_refused_only_the_bad_one_is_kept_back(tmp_path: Path) -> None:
    """Envoy stops at the first that it refuses: the others must not wait for their next version."""
    async with serving(tmp_path) as at, channel(at.target) as connection:
        names = ("ALL", "ROOTCA", "default", ID)
        stream = Sotw(connection)
        await stream.ask(*names)
        await stream.nack(await stream.next(), *names, error="one is bad")
        accepted: set[str] = set()
        refused: list[str] = []
        while len(accepted) + len(refused) < len(names):
            response = await stream.next()
            got = set(secrets(response))
            if "ROOTCA" not in got:
                accepted |= got
                await stream.ack(response, *names)
                continue
            if len(got) == 1:
                refused.append("ROOTCA")
            await stream.nack(response, *names, error="that one")
        assert accepted == {"ALL", "default", ID}
        await stream.silent()  # what is refused alone is not repeated
        assert at.tally.events[Event.NACK] == 3
        at.store.put_svid(svid())
        assert set(secrets(await stream.next())) == {"default", ID}


async def test_what_was_refused_with_others_is_not_repeated_where_it_is_out_of_date(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        await stream.ask("default", "ROOTCA")
        first = await stream.next()
        at.store.put_svid(svid())
        second = await stream.next()
        assert set(secrets(second)) == {"default"}
        await stream.nack(first, "default", "ROOTCA", error="no good")
        assert set(secrets(await stream.next())) == {"ROOTCA"}
        await stream.ack(stream.last, "default", "ROOTCA")
        await stream.silent()


@pytest.mark.parametrize("names", [("default", "ROOTCA"), ("*",)])
async def test_a_list_that_neither_answers_nor_changes_anything_is_answered_in_full(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    """Envoy sends one for each new user of a name that it has over ADS, and that one waits."""
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        first = await stream.get(*names)
        await stream.ask(*names, nonce=first.nonce)
        second = await stream.next()
        assert secrets(second) == secrets(first)
        assert second.version_info == first.version_info
        await stream.ack(second, *names)
        await stream.silent()
        await stream.nack(second, *names, error="said twice, so it asks for nothing")
        await stream.silent()
        at.store.put_svid(svid())
        await stream.next()


async def test_a_stale_nonce_is_ignored(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        await stream.get("default")
        await stream.ask("default", "ROOTCA", nonce="guessed")
        await stream.silent()
        assert at.tally.events[Event.STALE_NONCE] == 1


async def test_changed_names_with_the_current_nonce_are_answered_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        first = await stream.get("default")
        await stream.ask("default", "ROOTCA", nonce=first.nonce)
        second = await stream.next()
        assert set(secrets(second)) == {"ROOTCA"}
        await stream.ack(second, "ROOTCA")
        await stream.silent()  # a list that only shrinks
        await stream.ask("ROOTCA", "default", nonce=second.nonce)
        assert set(secrets(await stream.next())) == {"default"}  # named again, so sent again


async def test_an_empty_list_after_names_unsubscribes(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        first = await stream.get("default")
        await stream.ask(nonce=first.nonce)
        await stream.silent()
        at.store.put_svid(svid())
        await stream.silent()
        stored = at.store.svid(WEB)
        assert stored is not None
        assert stored.svid.key_id not in at.store.held_keys()


@pytest.mark.parametrize("names", [(), ("*",)])
async def test_everything_by_long_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    async with (
        serving(tmp_path, identities=(WEB, API)) as at,
        channel(at.target) as connection,
    ):
        stream = Sotw(connection)
        first = await stream.get(*names)
        assert set(secrets(first)) == {ID, str(API.spiffe_id), BUNDLE}
        at.store.put_bundle(OTHER, [root("other").der])
        second = await stream.next()
        assert set(secrets(second)) == {f"spiffe://{OTHER}"}
        await stream.ack(second, *names)
        await stream.silent()


async def test_an_old_version_without_a_nonce_is_answered_in_full(tmp_path: Path) -> None:
    async with serving(tmp_path) as at:
        async with channel(at.target) as connection:
            former = await Sotw(connection).get("default")
        async with channel(at.target) as connection:
            stream = Sotw(connection)
            await stream.ask("default", version=former.version_info)
            assert set(secrets(await stream.next())) == {"default"}
            stream = Sotw(connection)
            await stream.ask("default", version=former.version_info, nonce=former.nonce)
            assert set(secrets(await stream.next())) == {"default"}


async def test_a_first_request_with_an_error_is_answered_in_full(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        await stream.ask("default", nonce="former", error="of a former stream")
        assert set(secrets(await stream.next())) == {"default"}


async def test_versions_do_not_repeat_and_nonces_differ_between_runs(tmp_path: Path) -> None:
    versions, nonces = set(), set()
    for run in ("a", "b"):
        async with (
            serving(tmp_path, name=f"{run}.sock") as at,
            channel(at.target) as connection,
        ):
            for _ in range(3):
                response = await Sotw(connection).get("ROOTCA")
                nonces.add(response.nonce)
            versions.add(response.version_info)
    assert len(versions) == 2
    assert len(nonces) == 6


async def test_a_withdrawn_secret_is_not_sent_to_new_streams(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        held, new = Sotw(connection), Sotw(connection)
        await held.get("default")
        at.store.withdraw_svid(WEB)
        await held.silent()  # Envoy would ACK an empty answer and ignore it
        await new.ask("default")
        await new.silent()
        at.store.put_svid(svid())
        assert set(secrets(await held.next())) == {"default"}
        assert set(secrets(await new.next())) == {"default"}


async def test_hundreds_of_connections_of_which_some_break_off(tmp_path: Path) -> None:
    async with serving(tmp_path) as at:

        async def one(index: int) -> None:
            async with channel(at.target) as connection:
                stream = Sotw(connection)
                await stream.ask("default", "ROOTCA")
                if index % 3 == 0:
                    stream.cancel()
                    return
                response = await stream.next()
                assert len(secrets(response)) == 2

        await asyncio.gather(*(one(index) for index in range(240)))
        while at.service.sessions():
            await asyncio.sleep(0.01)
        assert at.tally.events[Event.STREAM_OPENED] == at.tally.events[Event.STREAM_CLOSED]


async def test_a_slow_reader_gets_the_latest_and_holds_up_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as slow, channel(at.target) as quick:
        sleeper, reader = Sotw(slow), Sotw(quick)
        await sleeper.ask("ROOTCA")
        await reader.get("ROOTCA")
        version = ""
        for _ in range(40):
            version = at.store.put_bundle(TD, [os.urandom(200_000)])
            response = await reader.next()
            await reader.ack(response, "ROOTCA")
            assert response.version_info == version
        got = 1
        while (await sleeper.next()).version_info != version:
            got += 1
        assert got < 40


async def test_another_type_is_refused_with_what_is_served(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        await stream.ask("default", type_url="type.googleapis.com/envoy.config.cluster.v3.Cluster")
        code, text = await stream.status()
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert SECRET in text


async def test_a_type_url_may_be_left_out(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        await stream.ask("default", type_url="")
        assert set(secrets(await stream.next())) == {"default"}


async def test_garbage_ends_its_own_stream_only(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        good, bad = Sotw(connection), Sotw(connection)
        await good.get("default")
        await bad.write(b"\xff\xff\xff\xff")
        code, text = await bad.status()
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert text
        at.store.put_svid(svid())
        await good.next()


async def test_recognition_that_changes_is_followed(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        at.store.put_svid(svid(API))
        stream = Sotw(connection)
        first = await stream.get("default", str(API.spiffe_id))
        assert set(secrets(first)) == {"default"}
        at.entitlement.replace(Caller(name="web", selectors=frozenset(), identities=(API, WEB)))
        second = secrets(await stream.next())
        assert set(second) == {"default", str(API.spiffe_id)}
        assert second["default"].tls_certificate == second[str(API.spiffe_id)].tls_certificate


async def test_an_answer_that_is_refused_lets_no_key_go(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        at.store.put_svid(svid(API))
        stream = Sotw(connection)
        await stream.get("default")
        old = at.store.svid(WEB)
        assert old is not None
        at.entitlement.replace(Caller(name="web", selectors=frozenset(), identities=(API,)))
        await stream.nack(await stream.next(), "default", error="no")
        await stream.silent()
        assert old.svid.key_id in at.store.held_keys()
        at.store.put_svid(svid(API))
        await stream.ack(await stream.next(), "default")
        await until(lambda: old.svid.key_id not in at.store.held_keys())


async def test_recognition_that_ends_ends_the_streams(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        await stream.get("default")
        at.entitlement.end(WorkloadError("the process ended"))
        code, text = await stream.status()
        assert code == grpc.StatusCode.PERMISSION_DENIED
        assert "the process ended" in text
        again = Sotw(connection)
        assert (await again.status())[0] == grpc.StatusCode.PERMISSION_DENIED


async def test_draining_ends_streams_as_unavailable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        await stream.get("default")
        at.service.drain()
        assert (await stream.status())[0] == grpc.StatusCode.UNAVAILABLE
    # An agent that stops has not failed: no call of all that end with it is a warning.
    assert [one.message for one in caplog.records if one.levelno >= logging.WARNING] == []


async def test_half_closed_by_the_client_ends_well(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        await stream.ask("default")
        await stream.done_writing()
        assert set(secrets(await stream.next())) == {"default"}
        assert (await stream.status())[0] == grpc.StatusCode.OK


async def test_draining_amid_first_answers_tells_every_client(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        streams = [Sotw(connection) for _ in range(50)]
        for stream in streams:
            await stream.ask("default")
        while not any(session.streams for session in at.service.sessions()):
            await asyncio.sleep(0)
        at.service.drain()
        codes = [(await stream.status())[0] for stream in streams]
        assert set(codes) == {grpc.StatusCode.UNAVAILABLE}
