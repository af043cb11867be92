from __future__ import annotations

from sds.ca.authority import IssuedChain
from sds.clock import SystemClock
from sds.pki import verify_svid_chain
from tests.support.authority import World, identity, items, wish


async def test_a_batch_and_then_renewals_on_one_stream() -> None:
    world = World()
    async with world.running() as authority, world.client(authority.port) as client:
        wishes = [wish(identity(f"/ns/a/sa/w{i}")) for i in range(40)]
        for _ in range(3):
            issuance = await client.issue(items(wishes))
            for (key, item), outcome in zip(wishes, issuance.outcomes, strict=True):
                assert isinstance(outcome, IssuedChain)
                verify_svid_chain(
                    outcome.chain,
                    roots=issuance.roots,
                    identity=item.identity,
                    public_key=key.public_key(),
                    now=SystemClock().now().wall,
                )
        assert authority.service.streams == 1
        assert (world.agent.reports, world.authority.reports) == (3, 1)
        assert len(world.journal) == 120
