"""A single answer is made in turns, and what its caller may have can change meanwhile."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from sds.errors import WorkloadError
from sds.secrets.store import SecretStore
from sds.serving.encode import SECRET_TYPE
from sds.serving.held import Held
from sds.serving.service import SecretService
from sds.serving.subscription.messages import SotwRequest
from sds.workload.entitlement import Caller, Entitlement
from tests.support.refusals import refused
from tests.support.serving import API, TD, WEB, root, svid

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from typing import Any

    from sds.identity import Identity


def caller(*identities: Identity) -> Caller:
    return Caller(name="a", selectors=frozenset(), identities=identities)


@pytest.fixture
def service() -> Iterator[SecretService]:
    store = SecretStore()
    store.put_bundle(TD, [root("one").der])
    for identity in (WEB, API):
        store.put_svid(svid(identity))
    with contextlib.closing(SecretService(store)) as made:
        yield made


def begun(service: SecretService, entitlement: Entitlement) -> Generator[int, None, Any]:
    request = SotwRequest(names=(str(WEB.spiffe_id), str(API.spiffe_id)))
    making: Generator[int, None, Any] = service.answer(
        entitlement, SECRET_TYPE, request, strong=False, held=Held()
    )
    next(making)
    return making


def names(making: Generator[int, None, Any]) -> list[str]:
    """The names in the answer, once it is whole."""
    found: list[str] = []

    def take() -> Generator[int, None, None]:
        answer = yield from making
        found.extend(resource.receipt.name for resource in answer.resources)

    for _ in take():
        pass
    return found


def test_a_right_that_ends_meanwhile_gives_no_answer(service: SecretService) -> None:
    """Before, the secrets came though the caller had lost its identity."""
    entitlement = Entitlement(caller(WEB))
    making = begun(service, entitlement)
    entitlement.end(WorkloadError("no rule matches any more", reason="no_match"))
    with refused("no_match"):
        names(making)


def test_a_right_that_changes_meanwhile_is_that_of_the_answer(service: SecretService) -> None:
    entitlement = Entitlement(caller(WEB))
    making = begun(service, entitlement)
    entitlement.replace(caller(API))
    assert names(making) == [str(API.spiffe_id)]
