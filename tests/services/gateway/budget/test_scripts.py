"""Single stories of the scripts that chance would hardly tell."""

from __future__ import annotations

from services.gateway.budget.admission import Admission, Snapshot
from services.gateway.budget.charging import Charge
from services.gateway.budget.models import RateLimits, Reservation
from services.gateway.budget.rows import settlement_of
from services.local.valkey import ValkeyServer
from tests.services.gateway.budget.clocked import ClockedExecutor
from tests.services.gateway.budget.support import ask, principal

NOW = 1_700_000_000_000


async def test_a_rebuild_begun_before_redis_was_emptied_does_not_count_afterwards(valkey_server: ValkeyServer) -> None:
    """The versions of two lives of one key are never the same, however much happened in each."""
    with valkey_server.client() as client:
        client.flushall()
        executor = ClockedExecutor(client, NOW)
        admission = Admission(executor, 30)  # type: ignore[arg-type]  # stands where Executor does
        user = principal().user_id

        async def settle() -> None:
            reservation = Reservation(ask(), 1, 1, 86_400, NOW, RateLimits(0, 0, 0, 0, 0, 0), "")
            settlement = settlement_of(reservation, Charge(5, 1, 1, 0), "success")
            await executor.run(*admission.settle_call(settlement))

        async def load(snapshot: Snapshot, spent: int) -> bool:
            index = NOW // 1000 // 86_400
            return await admission.load(
                user, snapshot, tier="ai", seconds=86_400, index=index, spent=spent, newest=index, block="0", revoked=[]
            )

        await settle()
        before = await admission.snapshot(user)
        client.flushall()
        executor.now_ms = NOW + 50
        assert await load(await admission.snapshot(user), 0)
        await settle()
        assert not await load(before, 0)
        assert await admission.state(user, "jti") == [b"load"]
