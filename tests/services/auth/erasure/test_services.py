"""Erasures: what is left of an identity, what it has again when it returns, and how they survive every outage."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import replace

import msgspec
import pytest

from services.auth.admin.access.admin_keys import AdminKey, AdminKeys
from services.auth.admin.access.sessions import Sessions
from services.auth.devices import operators_storage
from services.auth.devices.operators import DeviceAdmin
from services.auth.devices.operators_storage import Chosen
from services.auth.erasure import storage
from services.auth.erasure.export import HELD
from services.auth.errors import AccessDenied, InvalidSubjectToken, MaxUsersReached, UserBlocked
from services.auth.provisioning.client import LiteLLMError
from services.auth.standing import storage as standing
from services.auth.standing.digests import Digests
from services.auth.users import pools
from services.auth.users.entry import Users
from services.gateway.errors import InvalidToken, UserBlocked as Ended
from services.gateway.ledger.reconcile import differences
from services.gateway.ledger.refusals import RefusalLog
from services.gateway.ledger.storage import LedgerStorage
from services.gateway.tokens.models import Principal
from services.local.valkey import ValkeyServer
from shared.domain.service_types import ServiceType, ServiceTypes
from shared.errors import DependencyUnavailable, NotFound
from shared.state import layout
from shared.state.packed import Details, LedgerRow
from shared.stores.postgres import Database, Query
from shared.stores.redis import connect
from shared.telemetry.metrics import Registry
from tests.doubles.litellm_admin import html
from tests.services.auth.erasure.conftest import JANE, World
from tests.services.gateway.budget.support import ask, delivered, opened, principal, row
from tests.support.digests import DIGESTS
from tests.support.waiting import until

WHO = principal()
UID = WHO.identity
KEY = "3q2+7wARIjNEVWZ3iJmqu8zd7v8AESIzRFVmd4iZqrs="
INSTALL = "12345678-9abc-4def-8123-456789abcdef"


#: Of another kind of identity there is none, but its row would be erased all the same.
_DEVICE = (
    "insert into devices (key_id, public_key, receipt, source_digest) values (:identity, '\\x04', '\\x05', 'office')"
    " returning key_id"
)
ADMIN_KEY = AdminKey("jane", "admin", hashlib.sha256(b"jane").digest())


def of(identity: str, service_type: ServiceType | None = None) -> Principal:
    service_type = service_type or row()
    return replace(principal(service_type), identity=identity, user_id=f"{identity}:{service_type.name}")


@pytest.mark.parametrize(("identity", "kind"), [(UID, "fxa"), (KEY, "app_attest"), (INSTALL, "play")])
async def test_an_erased_identity_leaves_no_trace_but_its_digest(
    world: World, capsys: pytest.CaptureFixture[str], identity: str, kind: str
) -> None:
    who, memories, other = of(identity), of(identity, row("memories")), of(f"f{identity[1:]}")
    for entering in (identity, other.identity):
        for service_type in ("ai", "memories"):
            await world.users.enter(entering, world.types.by_name[service_type])
            world.litellm.customers[f"{entering}:{service_type}"] = {"budget_id": None}
    await world.run(_DEVICE, identity=identity)
    sessions = Sessions(world.redis, AdminKeys([ADMIN_KEY]), [b"a secret"])
    signed_in = await sessions.begin(ADMIN_KEY)
    await world.admin.set_tier(who.user_id, JANE, "memories")
    await world.run(
        "insert into exceptions values (:user, 5, false, now() + interval '1 day', 'fair') returning 1",
        user=who.user_id,
    )
    await world.run(
        "insert into revocations values ('j', :user, now() + interval '1 day') returning 1", user=who.user_id
    )
    await world.admin.block(who.user_id, JANE, f"{identity} is a robot")
    await world.admin.unblock(who.user_id, JANE)
    async with opened(world.redis_url, world.postgres_url, world.types) as (budgets, _, _):
        for each in (who, memories, other):
            done = await budgets.admit(ask(each))
            budgets.settle(done, delivered())
        await until(lambda: world.one("select count(*) = 3 from ledger"))
        running = await budgets.admit(ask(who))
        last_row = await budgets.admit(ask(memories))
        budgets.settle(last_row, delivered())  # on its way to the ledger

        refusals = RefusalLog(world.database, Registry())
        refusals.add(InvalidToken(), user_id=who.user_id, request_id="r", service_type="ai", model="m")
        await refusals.write()
        async with world.database.transaction() as transaction:
            await standing.record(transaction, identity, "tier")
        places = {place.partition(":")[0] for place in await world.traces(identity)}
        assert places == {*HELD, "litellm", "redis"}, (
            "a kind of place that is empty here would not show that it is emptied"
        )
        capsys.readouterr()

        erasing = asyncio.create_task(world.erasures.erase(identity, JANE))
        with pytest.raises(Ended):
            raise await running.revoked
        budgets.settle(running, delivered(outcome="error"))
        await erasing
        await world.erasures.finish()

        assert await world.traces(identity) == []
        assert await world.one("select count(*) from ledger") == 5
        for each in (who, memories):
            with pytest.raises(InvalidToken):
                await budgets.admit(ask(each))
        assert await world.traces(identity) == [], "a token in hand brings nothing back"
        budgets.settle(await budgets.admit(ask(other)), delivered())
        await until(lambda: world.one("select count(*) = 6 from ledger"))
    assert (identity in world.purged) is (kind == "fxa")
    lines = capsys.readouterr()
    assert "erased" in lines.out
    assert identity not in lines.out + lines.err
    assert await sessions.find(signed_in.id, take_flash=True) is not None
    digest = DIGESTS.of(identity)
    assert await world.one("select count(*) from ledger where user_id like :d", d=f"{digest}:%") == 4
    assert await world.one("select count(*) from audit_log where subject like :d", d=f"{digest}%") == 4
    assert await world.admin.counts() == {"ai": 1, "memories": 1}
    assert set(world.litellm.customers) == {other.user_id, f"{other.identity}:memories"}
    spent = await world.one("select sum(cost_nano)::text from ledger")
    for table in ("user_spend", "ledger_totals"):
        assert await world.one(f"select sum(spent_nano)::text from {table}") == spent
    assert await world.one("select sum(cost_nano)::text from ledger_hours where credential = :kind", kind=kind) == spent


@pytest.mark.parametrize("identity", [UID, KEY, INSTALL])
async def test_an_id_in_the_words_of_an_audit_entry_is_found_among_those_with_such_words(
    world: World, identity: str
) -> None:
    await world.run(
        "insert into audit_log (actor, action, subject, old, \"new\", source) select 'jane', 'user.block',"
        " md5(n::text) || case when n % 3 = 0 then '' else chr(58) || 'memories' end,"
        " jsonb_build_object('blocked', false), jsonb_build_object('blocked', true, 'reason', 'spends too much'), 'x'"
        " from generate_series(1, 3000) as n returning id"
    )
    words = (f"as {identity} did", f"x{identity}x", f"user={identity}/ai", 2 * identity, f"{identity}")
    for text in words:
        for old, new in ((text, "x"), ("x", text)):
            await world.run(
                "insert into audit_log (actor, action, subject, old, \"new\") values ('jane', 'user.block', :subject,"
                " jsonb_build_object('reason', cast(:old as text)), jsonb_build_object('reason', cast(:new as text)))"
                " returning id",
                subject=f"path {text}",
                old=old,
                new=new,
            )
    await world.database.execute(Query.text("analyze audit_log"))
    mentioning = 'select subject from audit_log where mentions_ids(subject, old, "new")'
    assert len(await world.run(mentioning)) == 2 * len(words)
    assert "audit_log_mentions" in str(await world.run(f"explain {mentioning}"))
    await storage.rename_records(world.database, identity, DIGESTS.of(identity))
    assert await world.traces(identity) == []
    assert sorted(entry["subject"] for entry in await world.run(mentioning)) == sorted(
        2 * [f"path {text.replace(identity, DIGESTS.of(identity))}" for text in words]
    )


async def test_no_sum_changes_by_an_erasure(world: World) -> None:
    async with opened(world.redis_url, world.postgres_url, world.types) as (budgets, _, _):
        for who in (WHO, principal(user=2), principal(row("memories"))):
            await world.users.enter(who.identity, who.service_type)
            for _ in range(3):
                budgets.settle(await budgets.admit(ask(who)), delivered())
        await until(lambda: world.one("select count(*) = 9 from ledger"))
    before = await world.sums()
    await world.erasures.erase(UID, JANE)
    assert await world.sums() == before
    assert await world.one("select count(*) from ledger where user_id like :uid", uid=f"{UID}%") == 0


async def erased(world: World, identity: str) -> None:
    await world.erasures.erase(identity, JANE)
    await world.erasures.finish()
    assert await world.traces(identity) == []


@pytest.mark.parametrize("identity", [UID, KEY, INSTALL])
async def test_an_identity_that_returns_is_still_blocked(world: World, identity: str) -> None:
    await world.users.enter(identity, world.types.by_name["ai"])
    await world.admin.block(f"{identity}:ai", JANE, f"{identity} spends through a script")
    await erased(world, identity)
    for service_type in ("ai", "memories"):
        with pytest.raises(UserBlocked):
            await world.users.enter(identity, world.types.by_name[service_type])
    assert await world.one("select count(*) from users") == 0
    assert await world.one("select blocked_reason from identities") == f"{DIGESTS.of(identity)} spends through a script"


async def test_a_device_that_returns_is_still_revoked(world: World) -> None:
    enrol = "insert into devices (key_id, public_key) values (:key, '') returning key_id"
    await world.run(enrol, key=KEY)
    await world.users.enter(KEY, world.types.by_name["ai"])
    await DeviceAdmin(world.database, world.changes, reports=world.database).revoke(KEY, JANE, "stolen")
    await erased(world, KEY)
    await world.run(enrol, key=KEY)  # attested again
    with pytest.raises(AccessDenied):
        await world.users.enter(KEY, world.types.by_name["ai"])


@pytest.mark.parametrize(("seconds", "rotated"), [(3600, False), (86_400, True), (7 * 86_400, False)])
async def test_an_identity_that_returns_goes_on_in_its_period(world: World, seconds: int, rotated: bool) -> None:
    who = principal(row(duration_seconds=seconds))
    types = ServiceTypes({"ai": who.service_type}, {})
    secrets = [b"a secret of tests"]
    async with opened(world.redis_url, world.postgres_url, types) as (budgets, _, _):
        for number in range(2):
            digests = Digests(secrets)
            await Users(world.database, world.redis, Registry(), digests).enter(UID, who.service_type)
            budgets.settle(await budgets.admit(ask(who)), delivered())
            before = await budgets.state(who)
            await until(lambda: world.one("select count(*) > 0 from ledger where user_id = :u", u=who.user_id))
            await world.restarted(digests=digests).erase(UID, JANE)
            await world.restarted(digests=digests).finish()
            assert await world.traces(UID) == []
            if rotated:
                secrets.insert(0, b"another secret %d" % number)
        await Users(world.database, world.redis, Registry(), Digests(secrets)).enter(UID, who.service_type)
        assert before.spent_nano == 2 * 50_000
        assert (await budgets.state(who)).spent_nano == before.spent_nano
        assert await world.one("select count(*) from ledger where user_id = :u", u=who.user_id) == 2
        assert (await world.admin.get(who.user_id)).spent.spent_nano == before.spent_nano
        assert len(await differences(world.database, world.redis, types, None, now=time.time)) == 0


async def test_what_was_decided_is_found_by_an_older_secret(world: World) -> None:
    await world.users.enter(UID, world.types.by_name["ai"])
    await world.admin.block(WHO.user_id, JANE)
    await world.erasures.erase(UID, JANE)
    rotated = Digests([b"the new secret", b"a secret of tests"])
    with pytest.raises(UserBlocked):
        await Users(world.database, world.redis, Registry(), rotated).enter(UID, world.types.by_name["ai"])
    await world.restarted(digests=rotated).finish()
    assert await world.traces(UID) == []
    assert await world.one("select count(*) from erasures where sealed is not null") == 0


async def test_of_racing_erasures_one_happens_and_places_stay_exact(world: World) -> None:
    full = row("ai", max_users=1)
    await world.users.enter(UID, full)
    async with opened(world.redis_url, world.postgres_url, world.types) as (budgets, _, _):
        budgets.settle(await budgets.admit(ask(WHO)), delivered())
        await until(lambda: world.one("select count(*) = 1 from ledger"))
    results = await asyncio.gather(*(world.erasures.erase(UID, JANE) for _ in range(10)), return_exceptions=True)
    assert {type(result) for result in results} <= {type(None), NotFound}, "one that has begun is continued"
    assert await world.admin.counts() == {"ai": 0, "memories": 0}
    assert await world.one("select count(*) from audit_log where action = 'user.erase'") == 1
    await world.users.enter("f" * 32, full)
    with pytest.raises(MaxUsersReached):
        await world.users.enter(UID, full)


async def test_erasures_in_several_pools_wait_for_each_other_in_one_order(world: World) -> None:
    """One that waits for the first pool holds no later one, whatever the order of the service types."""
    types = {
        name: row(name, pool=pool, pool_members=(name,), max_users=9) for name, pool in (("ai", "z"), ("s2s", "a"))
    }
    world.types = ServiceTypes(types, {})
    for service_type in types.values():
        await world.users.enter(UID, service_type)
    async with world.database.transaction() as other:
        await pools.leave(other, "f" * 32, types["s2s"])
        erasing = asyncio.create_task(world.erasures.erase(UID, JANE))
        await until(lambda: world.one("select count(*) = 1 from pg_locks where locktype = 'advisory' and not granted"))
        assert await world.one("select users from pools where pool = 'z' for update nowait") == 1
        await pools.leave(other, "f" * 32, types["ai"])
    await erasing
    assert await world.one("select count(*) from users") == 0


async def test_an_unknown_identity_leaves_no_trace_by_being_erased(world: World) -> None:
    for identity in (UID, "nobody", "a\0b", ""):
        with pytest.raises(NotFound):
            await world.erasures.erase(identity, JANE)
    assert await world.one("select count(*) from erasures") == 0
    assert UID in world.purged, "of a uid that never got in, a verification may be cached"


async def test_rows_that_come_late_are_written_under_the_digest(world: World) -> None:
    """Of a gateway that could not reach Redis or PostgreSQL for a while."""
    await world.users.enter(UID, world.types.by_name["ai"])
    await erased(world, UID)
    now = int(time.time() * 1000)
    late = LedgerRow(
        "late", WHO.user_id, 5, now, 1, 1, "success", Details("r", "ai", "m", "none", 86_400), settled_ms=now
    )
    await LedgerStorage(world.database).write([late])
    log = RefusalLog(world.database, Registry())
    log.add(InvalidToken(), user_id=WHO.user_id, request_id="r", service_type="ai", model="m")
    log.add(InvalidToken(), user_id=None, request_id="r", service_type="none", model="m")
    await log.write()
    assert await world.one("select count(*) from refusals where user_id is null") == 2
    assert await world.traces(UID) == []
    assert await world.one("select user_id from ledger") == f"{DIGESTS.of(UID)}:ai"
    await world.users.enter(UID, world.types.by_name["ai"])
    await LedgerStorage(world.database).write([msgspec.structs.replace(late, id="later")])
    assert await world.one("select user_id from ledger where id = 'later'") == WHO.user_id


async def test_a_settlement_that_comes_late_leaves_redis_after_some_minutes(world: World) -> None:
    async with opened(world.redis_url, world.postgres_url, world.types) as (budgets, _, _):
        await world.users.enter(UID, WHO.service_type)
        cut_off = await budgets.admit(ask(WHO))
        await world.redis.flushall()
        # As if its gateway had slept: its request was charged whole, and its settlement lowers that
        await world.redis.set(layout.of_user(WHO.user_id).tombstone(cut_off.id), f"reaped {cut_off.amount_nano}")
        await erased(world, UID)
        budgets.settle(cut_off, delivered())
        await until(lambda: world.one("select count(*) = 1 from ledger"))
        key = layout.user_key(WHO.user_id)

        async def fades() -> bool:
            return 0 < await world.redis.ttl(key) <= layout.SETTLED

        await until(fades)
        assert await world.one("select user_id from ledger") == f"{DIGESTS.of(UID)}:ai"


async def test_a_change_that_was_waiting_brings_nothing_back(world: World) -> None:
    await world.users.enter(UID, world.types.by_name["ai"])
    async with world.database.transaction() as transaction:
        await standing.record(transaction, UID, "blocked")
    await erased(world, UID)
    await world.changes.apply(UID)
    assert await world.traces(UID) == []


async def test_redis_that_is_down_is_told_when_it_is_back(world: World, own_valkey: ValkeyServer) -> None:
    async with connect(own_valkey.url, timeout=0.5) as redis:
        erasures = world.restarted(redis=redis)
        await world.users.enter(UID, world.types.by_name["ai"])
        own_valkey.stop()
        with pytest.raises(DependencyUnavailable):
            await erasures.erase(UID, JANE)
        assert [trace for trace in await world.traces(UID) if not trace.startswith("redis")] == []
        users = Users(world.database, redis, Registry(), DIGESTS)
        with pytest.raises(DependencyUnavailable):
            await users.enter(UID, world.types.by_name["ai"])  # not before Redis has forgotten it
        own_valkey.start()
        await erasures.erase(UID, JANE)
        assert await world.one("select count(*) from erasures where forgotten_at is not null") == 1
        assert await world.one("select count(*) from audit_log where action = 'user.erase'") == 1
        async with erasures.running():
            await until(lambda: world.one("select count(*) = 0 from erasures where sealed is not null"))
        await users.enter(UID, world.types.by_name["ai"])


@pytest.mark.parametrize(
    ("identity", "comes"),
    [(KEY, _DEVICE), (UID, "insert into identities (identity, blocked_at) values (:identity, now()) returning 1")],
)
async def test_what_comes_during_an_erasure_goes_when_it_is_sent_again(world: World, identity: str, comes: str) -> None:
    async with world.database.transaction() as transaction:
        await storage.begin(transaction, identity, DIGESTS.of(identity), DIGESTS.seal(identity), ["ai"])
    await world.run(comes, identity=identity)
    await erased(world, identity)


async def test_an_erasure_whose_secret_is_lost_is_finished_when_it_is_sent_again(world: World) -> None:
    lost = Digests([b"a secret that is lost"])
    async with world.database.transaction() as transaction:
        await storage.begin(transaction, UID, lost.of(UID), lost.seal(UID), ["ai"])
    await erased(world, UID)
    assert await world.one("select count(*) from erasures where sealed is not null") == 0


async def test_litellm_that_is_down_is_told_when_it_is_back(world: World) -> None:
    await world.users.enter(UID, world.types.by_name["ai"])
    world.litellm.customers[WHO.user_id] = {"budget_id": None}
    world.litellm.fault = html
    await world.erasures.erase(UID, JANE)
    with pytest.raises(LiteLLMError):
        await world.erasures.finish()
    await world.users.enter(UID, world.types.by_name["ai"])  # who returns need not wait for LiteLLM
    await world.run("update users set litellm_budget = 'mlpa:ai' returning 1")
    world.litellm.fault = None
    await world.erasures.finish()
    assert WHO.user_id not in world.litellm.customers
    assert await world.one("select litellm_budget from users") is None, "and is made a customer again"
    assert await world.one("select count(*) from erasures where sealed is not null") == 0


@pytest.mark.parametrize("dead", ["database", "jobs", "litellm_rows"])
async def test_an_erasure_that_broke_off_is_finished_by_another_process(
    world: World, unused_port: int, dead: str
) -> None:
    await world.users.enter(UID, world.types.by_name["ai"])
    async with Database.connect(f"postgresql://x:x@127.0.0.1:{unused_port}/x") as nobody:
        broken = world.restarted(**{dead: nobody})
        if dead != "litellm_rows":
            with pytest.raises(DependencyUnavailable):
                await broken.erase(UID, JANE)
        else:
            await broken.erase(UID, JANE)
            with pytest.raises(DependencyUnavailable):
                await broken.finish()
    if dead == "jobs":
        assert not any(trace.startswith("redis") for trace in await world.traces(UID)), "its tokens are refused"
    if dead == "database":
        assert await world.one("select count(*) from users") == 1, "nothing was done"
        await world.erasures.erase(UID, JANE)
    for _ in range(2):
        await world.erasures.finish()
    assert await world.traces(UID) == []
    assert await world.one("select count(*) from erasures where sealed is not null") == 0


async def test_litellms_own_rows_are_deleted_in_its_database(world: World, empty_postgres_url: str) -> None:
    async with Database.connect(empty_postgres_url) as rows_of:
        for table, column in (("LiteLLM_SpendLogs", "end_user"), ("LiteLLM_DailyEndUserSpend", "end_user_id")):
            await rows_of.execute(Query.text(f'create table "{table}" ({column} text)'))
            await rows_of.execute(
                Query.text(f"insert into \"{table}\" values ('{UID}\\:ai'), ('{UID}\\:memories'), ('x')")
            )
        await world.users.enter(UID, world.types.by_name["ai"])
        await world.restarted(litellm_rows=rows_of).erase(UID, JANE)
        for table in ("LiteLLM_SpendLogs", "LiteLLM_DailyEndUserSpend"):
            assert (await rows_of.fetch(Query.text(f'select count(*) as n from "{table}"')))[0]["n"] == 1


async def test_fingerprints_are_kept_no_longer_than_tokens_live(world: World) -> None:
    await world.users.enter(UID, world.types.by_name["ai"])
    await erased(world, UID)
    await storage.clear(world.database, kept=3600)
    assert await world.one("select count(fingerprint) from erasures") == 1
    await storage.clear(world.database, kept=0)
    assert await world.one("select count(fingerprint) from erasures") == 0


@pytest.mark.parametrize("service_type", ["ai", "memories"])
async def test_an_exchange_during_an_erasure_brings_nothing_back(world: World, service_type: str) -> None:
    """A newcomer to a service type, and a known user with a new generation, which both wait for the erasure."""
    await world.users.enter(UID, world.types.by_name["ai"], generation=1)
    async with world.database.transaction() as transaction:
        await storage.lock_users(transaction, UID)
        entering = asyncio.create_task(world.users.enter(UID, world.types.by_name[service_type], generation=2))
        await until(lambda: world.one("select count(*) = 1 from pg_locks where locktype = 'advisory' and not granted"))
        await storage.begin(transaction, UID, DIGESTS.of(UID), DIGESTS.seal(UID), ["ai", "memories"])
    with pytest.raises(DependencyUnavailable):
        await entering
    await world.erasures.finish()
    assert await world.traces(UID) == []
    await world.users.enter(UID, world.types.by_name[service_type], generation=2)


@pytest.mark.parametrize(
    ("decision", "refusal"),
    [
        ("insert into identities (identity, blocked_at) values (:digest, now()) returning 1", UserBlocked),
        ("insert into identities (identity, tokens_from_ms) values (:digest, 200000) returning 1", InvalidSubjectToken),
        ("insert into identities (identity, generation) values (:digest, 9) returning 1", InvalidSubjectToken),
        ("update erasures set device_revoked_at = now() where digest = :digest returning 1", AccessDenied),
    ],
)
async def test_a_decision_that_comes_while_an_erased_identity_returns_is_not_lost(
    world: World, decision: str, refusal: type[Exception]
) -> None:
    await world.users.enter(UID, world.types.by_name["ai"])
    await erased(world, UID)
    async with world.database.transaction() as transaction:
        await standing.lock(transaction, UID)
        entering = asyncio.create_task(world.users.enter(UID, world.types.by_name["ai"], issued_at=100, generation=1))
        await until(lambda: world.one("select count(*) = 1 from pg_locks where locktype = 'advisory' and not granted"))
        await transaction.fetch_one(Query.text(decision), digest=DIGESTS.of(UID))
    with pytest.raises(refusal):
        await entering
    with pytest.raises(refusal):
        await world.users.enter(UID, world.types.by_name["memories"], issued_at=100, generation=1)
    assert await world.one("select count(*) from users") == 0


async def test_erasures_whose_secret_is_lost_hold_up_no_later_one(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    await world.run(
        "insert into erasures (digest, sealed, erased_at)"
        " select 'erased.' || n, convert_to(repeat('x', 60), 'UTF8'), now() - interval '1 day'"
        " from generate_series(1, 250) as n returning digest"
    )
    await world.users.enter(UID, world.types.by_name["ai"])
    await world.erasures.erase(UID, JANE)
    for _ in range(3):
        await world.erasures.finish()
    assert await world.one("select count(*) from erasures where sealed is not null") == 250
    assert capsys.readouterr().out.count("erasure_has_no_secret") == 250, "each is told once"


@pytest.mark.parametrize("bulk", [False, True])
async def test_a_decision_about_a_device_that_commits_during_its_erasure_is_kept(world: World, bulk: bool) -> None:
    enrol = "insert into devices (key_id, public_key, source_digest) values (:key, '', 'farm') returning key_id"
    await world.run(enrol, key=KEY)
    await world.users.enter(KEY, world.types.by_name["ai"])
    async with world.database.transaction() as transaction:
        if bulk:
            await operators_storage.block(transaction, Chosen(source_digest="farm"), reason=None, limit=10)
        else:
            await operators_storage.lock(transaction, KEY)
            await standing.revoke_device(transaction, KEY, "stolen")
        erasing = asyncio.create_task(world.erasures.erase(KEY, JANE))
        await until(lambda: world.one("select count(*) > 0 from pg_locks where not granted"))
    await erasing
    await world.erasures.finish()
    assert await world.traces(KEY) == []
    await world.run(enrol, key=KEY)  # attested again
    with pytest.raises(AccessDenied):
        await world.users.enter(KEY, world.types.by_name["ai"])
