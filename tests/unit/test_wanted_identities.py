"""How many identities are kept for callers that have left."""

from __future__ import annotations

from sds.identity import Identity, SpiffeId
from sds.workload.wanted_identities import MOST_AT_REST, WantedIdentities
from tests.support.front_door import Keeper


def identity(name: str) -> Identity:
    return Identity(spiffe_id=SpiffeId.parse(f"spiffe://example.org/{name}"))


async def test_an_owner_that_becomes_many_users_leaves_few_identities_behind() -> None:
    keeper = Keeper()
    wanted = WantedIdentities(keeper, linger=3600.0)
    victim = identity("victim")
    wanted.want(victim)
    wanted.unwant(victim, "uid 1001")
    many = [identity(f"u/{number}") for number in range(3 * MOST_AT_REST)]
    for one in many:
        wanted.want(one)
        wanted.unwant(one, "uid 100000-165535")
    assert keeper.kept == [victim, *many[-MOST_AT_REST:]]
    wanted.want(many[-1])  # it comes back in time
    assert keeper.rests[-1] is False
    wanted.close()
    assert keeper.kept == [many[-1]]
