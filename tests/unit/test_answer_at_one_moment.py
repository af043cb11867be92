"""A single answer is made in turns, and what its caller may have can change meanwhile."""

from __future__ import annotations

import contextlib
import inspect
import sys
from typing import TYPE_CHECKING

import pytest

from sds.errors import WorkloadError
from sds.secrets.store import SecretStore
from sds.serving.answer_memory import AnswerMemory
from sds.serving.encode import SECRET_TYPE, Resource
from sds.serving.service import SecretService
from sds.serving.slices import SLICE
from sds.serving.subscription.messages import Answer, SotwRequest
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
        entitlement, SECRET_TYPE, request, strong=False, held=AnswerMemory()
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


def test_what_was_found_before_a_change_does_not_wait_for_the_rest(service: SecretService) -> None:
    """It may have a key that retired, and a client with many calls makes each of them long."""
    entitlement = Entitlement(caller(WEB))
    request = SotwRequest(names=(str(WEB.spiffe_id), *(f"none{at}" for at in range(20 * SLICE))))
    making = service.answer(entitlement, SECRET_TYPE, request, strong=False, held=AnswerMemory())

    def found() -> list[Resource]:
        whole: Answer[Resource] = inspect.getgeneratorlocals(making).get("whole", Answer())
        return whole.resources

    while not found():
        next(making)
    service._catalog.store.put_svid(svid(WEB))
    (before,) = found()
    next(making)
    assert before not in found()
    assert sys.getrefcount(before) == 2  # the variable and the argument
