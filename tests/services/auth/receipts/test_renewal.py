"""The job that renews receipts, against the stand-in for Apple, with PostgreSQL."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import psycopg2
import pytest
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy.engine import make_url

from services.auth.appattest.policy import load_roots
from services.auth.receipts import storage
from services.auth.receipts.apple import Apple, Credentials
from services.auth.receipts.renewal import Renewal, Stopped, Trust
from services.local import apple, receipts
from services.local.apple import StandIn
from services.local.device import Device
from services.local.faults import Fault
from services.local.pki import Pki
from shared.stores.postgres import Database, DatabaseUnavailable, Query
from tests.support.clock import Clock
from tests.support.waiting import until
from tests.system.proxy import Gate

TEAM, BUNDLE = "A1B2C3D4E5", "org.example.app"
WEEK = 7 * 86_400
_INSERT = Query.text(
    "insert into devices (key_id, public_key, bundle_id, receipt) values (:key_id, '\\x04', :bundle_id, :receipt)"
)
_READ = Query.text(
    "select risk_metric, receipt_fault as fault, receipt, extract(epoch from receipt_due_at - now())::float as due "
    "from devices where key_id = :key_id"
)


@dataclass
class World:
    """Apple, a database, and devices with receipts."""

    database: Database
    stand_in: StandIn
    url: str
    session: aiohttp.ClientSession
    pki: Pki
    clock: Clock

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock(), UTC)

    async def device(self, receipt: bytes | None = None, *, age: timedelta = timedelta(0), **options: Any) -> Device:
        """A device that is known here; its receipt is as old as ``age``."""
        device = Device(self.pki, TEAM, BUNDLE, **options)
        made = self.receipt(device, age=age) if receipt is None else receipt
        await self.database.execute(_INSERT, key_id=device.key_id_b64, bundle_id=BUNDLE, receipt=made)
        return device

    def receipt(self, device: Device, *, age: timedelta = timedelta(0)) -> bytes:
        made = self.now - age
        leaf = self.pki.certify(device.key.public_key(), key_id=device.key_id, nonce=bytes(32), now=made)
        return device.receipt(leaf.public_bytes(Encoding.DER), b"challenge", made)

    def job(self, **options: Any) -> Renewal:
        credentials = Credentials(
            options.pop("key", self.stand_in.key_pem).encode(), key_id=apple.KEY_ID, team_id=TEAM, clock=self.clock
        )
        client = Apple(self.session, self.url, credentials, timeout=options.pop("timeout", 30.0))
        trust = Trust(TEAM, load_roots(self.pki.root_pem))
        return Renewal(self.database, client, trust, **{"rate": 1000, "every": WEEK, "clock": self.clock, **options})

    async def run(self, **options: Any) -> Counter[str]:
        job = self.job(**options)
        await job.run()
        return job.done

    async def stopped(self, **options: Any) -> tuple[str, Counter[str]]:
        job = self.job(**options)
        with pytest.raises(Stopped) as caught:
            await job.run()
        return str(caught.value), job.done

    async def read(self, device: Device) -> dict[str, Any]:
        return (await self.database.fetch(_READ, key_id=device.key_id_b64))[0]

    async def make_due(self) -> None:
        await self.database.execute(Query.text("update devices set receipt_due_at = now()"))


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki.create(datetime.now(UTC) - timedelta(days=200))


@pytest.fixture
async def world(postgres_url: str, pki: Pki) -> AsyncIterator[World]:
    clock = Clock(datetime.now(UTC).timestamp())
    stand_in = StandIn(pki, team=TEAM, clock=clock)
    async with (
        Database.connect(postgres_url, timeout=30) as database,  # as the command's own
        TestServer(stand_in.app(), handler_cancellation=True) as server,
        aiohttp.ClientSession() as session,
    ):
        yield World(database, stand_in, str(server.make_url("")), session, pki, clock)


async def test_a_receipt_is_renewed_and_its_metric_stored(world: World) -> None:
    device = await world.device()
    assert await world.run() == {"renewed": 1}
    stored = await world.read(device)
    assert (stored["risk_metric"], stored["fault"]) == (1, None)
    assert receipts.fields_of(stored["receipt"])[6] == b"RECEIPT"
    assert WEEK - 60 < stored["due"] <= WEEK
    assert await world.run() == {}, "nothing is due any more"


async def test_a_phone_with_many_keys_gets_a_high_metric(world: World) -> None:
    for _ in range(5):
        last = await world.device(phone="one")
    await world.run(every=1)
    world.clock.now += 2 * 86_400
    await world.make_due()
    assert await world.run() == {"renewed": 5}
    assert (await world.read(last))["risk_metric"] == 5


async def test_a_renewed_receipt_is_not_renewed_before_its_time(world: World) -> None:
    device = await world.device()
    await world.run(every=60)
    stored = await world.read(device)
    assert 86_000 < stored["due"] <= 86_400, "Apple's date, which is later than ours"
    await world.make_due()
    assert await world.run() == {"too_early": 1}
    assert (world.stand_in.calls["200"], world.stand_in.calls["304"]) == (1, 0), "Apple was not asked"
    assert 86_000 < (await world.read(device))["due"] <= 86_400
    world.clock.now += 86_401
    await world.make_due()
    assert await world.run() == {"renewed": 1}


async def test_an_expired_receipt_is_never_tried_again(world: World) -> None:
    device = await world.device(age=timedelta(days=90, seconds=1))
    assert await world.run() == {"expired": 1}
    stored = await world.read(device)
    assert (stored["fault"], stored["due"], world.stand_in.calls.total()) == ("expired", None, 0)


async def test_a_forged_receipt_is_marked_and_never_sent(world: World) -> None:
    other = Pki.create()
    foreign = Device(other, TEAM, BUNDLE)
    leaf = other.certify(foreign.key.public_key(), key_id=foreign.key_id, nonce=bytes(32), now=world.now)
    forged = [
        await world.device(b"receipt"),
        await world.device(foreign.receipt(leaf.public_bytes(Encoding.DER), b"", world.now)),
        await world.device(world.receipt(Device(world.pki, TEAM, BUNDLE))),
        await world.device(world.receipt(Device(world.pki, "OTHERTEAM1", BUNDLE))),
    ]
    assert await world.run() == {"forged": 4}
    for device in forged:
        stored = await world.read(device)
        assert (stored["fault"], stored["due"], stored["risk_metric"]) == ("forged", None, None)
    assert not world.stand_in.calls


async def test_no_receipt_of_one_device_serves_another(world: World) -> None:
    """A farm of keys with one receipt."""
    first = await world.device()
    copy = (await world.read(first))["receipt"]
    for _ in range(3):
        await world.device(copy)
    assert await world.run() == {"renewed": 1, "forged": 3}


@pytest.mark.parametrize(
    ("status", "outcome", "fault", "least", "most"),
    [
        (304, "too_early", None, 86_300, 86_400),
        (404, "unknown", "unknown", WEEK - 60, WEEK),
        (400, "refused", "refused", WEEK - 60, WEEK),
        (500, "unavailable", None, 500, 600),
        (503, "unavailable", None, 500, 600),
        (418, "unavailable", None, 500, 600),
        (799, "unavailable", None, 500, 600),
    ],
)
async def test_an_answer_without_a_receipt_keeps_the_old_one(
    world: World, status: int, outcome: str, fault: str | None, least: int, most: int
) -> None:
    device = await world.device()
    before = (await world.read(device))["receipt"]
    world.stand_in.faults.set(Fault("renew", "respond", status=status))
    assert await world.run() == {outcome: 1}
    stored = await world.read(device)
    assert (stored["receipt"], stored["fault"], stored["risk_metric"]) == (before, fault, None)
    assert least < stored["due"] <= most
    world.stand_in.faults.clear()
    await world.make_due()
    assert await world.run() == {"renewed": 1}
    assert (await world.read(device))["fault"] is None


@pytest.mark.parametrize(
    ("headers", "wait"), [({"Retry-After": "120"}, 120), ({}, 60), ({"Retry-After": "9" * 9}, 86_400)]
)
async def test_a_request_to_wait_ends_the_run_and_puts_all_off(
    world: World, headers: dict[str, str], wait: int
) -> None:
    devices = [await world.device() for _ in range(12)]
    world.stand_in.faults.set(Fault("renew", "respond", status=429, headers=headers))
    why, done = await world.stopped(rate=100)
    assert "wait" in why
    assert done.total() == 12
    assert world.stand_in.faults.calls["renew"] < 12
    for device in devices:
        assert wait - 30 < (await world.read(device))["due"] <= wait


async def test_a_key_that_apple_refuses_ends_the_run_and_leaves_all_due(world: World) -> None:
    devices = [await world.device() for _ in range(10)]
    why, _ = await world.stopped(key=StandIn(world.pki, team=TEAM).key_pem, rate=100)
    assert "APPLE_RECEIPT_KEY" in why
    assert world.stand_in.calls["401"] < 10
    for device in devices:
        assert (await world.read(device))["due"] <= 0
    assert await world.run() == {"renewed": 10}


async def test_five_failures_in_a_row_end_the_run(world: World) -> None:
    for _ in range(30):
        await world.device()
    world.stand_in.faults.set(Fault("renew", "respond", status=500))
    why, done = await world.stopped(rate=200)
    assert why == "Apple does not answer"
    assert done["unavailable"] < 30
    assert world.stand_in.faults.calls["renew"] < 30


async def test_an_apple_that_is_silent_ends_the_run_and_loses_nothing(world: World) -> None:
    devices = [await world.device() for _ in range(30)]
    before = [(await world.read(device))["receipt"] for device in devices]
    world.stand_in.faults.set(Fault("renew", "hang"))
    why, done = await world.stopped(timeout=0.1)
    assert (why, done.total()) == ("Apple does not answer", 30)
    assert 5 <= done["unavailable"] < 30
    assert world.stand_in.faults.calls["renew"] <= done["unavailable"], "a receipt was sent again"
    for device, receipt in zip(devices, before, strict=True):
        stored = await world.read(device)
        assert (stored["receipt"], stored["fault"], stored["risk_metric"]) == (receipt, None, None)
        assert 500 < stored["due"] <= 600
    world.stand_in.faults.clear()
    await world.make_due()
    assert await world.run() == {"renewed": 30}


@pytest.mark.parametrize("body", ["", "!", "AAAA", "cmVjZWlwdA=="])
async def test_an_answer_that_is_no_receipt_changes_nothing(world: World, body: str) -> None:
    device = await world.device()
    world.stand_in.faults.set(Fault("renew", "respond", status=200, body=body))
    (outcome,) = await world.run()
    assert outcome in ("rejected", "unavailable")
    stored = await world.read(device)
    assert (stored["risk_metric"], stored["fault"]) == (None, None)
    assert receipts.fields_of(stored["receipt"])[6] == b"ATTEST"


async def test_an_old_receipt_or_that_of_another_device_is_no_renewal(world: World) -> None:
    victim, farm = await world.device(), Device(world.pki, TEAM, BUNDLE)
    signer = receipts.signer(world.pki, world.now)

    def renewed(device: Device, age: timedelta) -> str:
        fields = receipts.fields_of(world.receipt(device, age=age))
        made = receipts.renewed_fields(fields, metric=1, now=world.now - age)
        return base64.b64encode(receipts.sign(made, world.pki, signer)).decode()

    for body in (
        renewed(farm, timedelta(0)),
        renewed(victim, timedelta(minutes=6)),
        base64.b64encode(world.receipt(victim)).decode(),
    ):
        world.stand_in.faults.set(Fault("renew", "respond", status=200, body=body))
        await world.make_due()
        assert await world.run() == {"rejected": 1}
        assert (await world.read(victim))["risk_metric"] is None
    world.stand_in.faults.set(Fault("renew", "respond", status=200, body=renewed(victim, timedelta(minutes=4))))
    await world.make_due()
    assert await world.run() == {"renewed": 1}


async def test_several_jobs_at_once_renew_no_receipt_twice(world: World) -> None:
    devices = [await world.device() for _ in range(60)]
    done = await asyncio.gather(*(world.run() for _ in range(4)))
    assert sum(each["renewed"] for each in done) == 60
    assert world.stand_in.calls["200"] == 60
    assert all(world.stand_in.calls[device.key_id_b64] == 1 for device in devices)


async def test_what_a_stopped_job_had_claimed_is_due_when_its_claim_ends(world: World) -> None:
    device = await world.device()
    assert len(await storage.claim(world.database, limit=5)) == 1
    assert await world.run() == {}
    assert 500 < (await world.read(device))["due"] <= storage.CLAIM
    await world.make_due()
    assert await world.run() == {"renewed": 1}


async def test_who_has_lost_its_claim_writes_nothing(world: World) -> None:
    device = await world.device()
    (late,) = await storage.claim(world.database, limit=5)
    await world.make_due()
    await world.run()
    assert not await storage.settle(world.database, late, storage.Settled(None, "forged"))
    stored = await world.read(device)
    assert (stored["fault"], stored["risk_metric"]) == (None, 1)


async def test_a_run_is_bounded_in_number_and_rate(world: World) -> None:
    for _ in range(6):
        await world.device()
    job = world.job(rate=20)
    began = asyncio.get_running_loop().time()
    await job.run(4)
    assert job.done == {"renewed": 4}
    assert asyncio.get_running_loop().time() - began >= 3 / 20


async def test_revoked_devices_and_those_without_a_receipt_are_left_alone(world: World) -> None:
    await world.device()
    await world.database.execute(Query.text("update devices set revoked_at = now()"))
    await world.device()
    await world.database.execute(Query.text("update devices set receipt = null where revoked_at is null"))
    assert await world.run() == {}


_END_WAITING = Query.text(
    "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
    " where datname = current_database() and wait_event_type = 'Lock'"
)


@pytest.mark.parametrize("state", ["unreachable", "read-only", "no rights", "unmigrated", "slow"])
async def test_a_job_that_the_database_refuses_says_so_and_leaves_all_to_the_next(
    world: World, postgres_url: str, empty_postgres_url: str, state: str
) -> None:
    for _ in range(3):
        await world.device()
    urls = {
        "unreachable": "postgresql://nobody@127.0.0.1:9/none",
        "read-only": f"{postgres_url}?options=-cdefault_transaction_read_only%3Don",
        "no rights": f"{postgres_url}?options=-crole%3Dpg_monitor",
        "unmigrated": empty_postgres_url,
    }
    good = world.database
    with closing(psycopg2.connect(postgres_url)) as other, other.cursor() as cursor:
        if state == "slow":
            cursor.execute("lock table devices in access exclusive mode")
        async with Database.connect(urls.get(state, postgres_url), timeout=0.5) as world.database:
            with pytest.raises(DatabaseUnavailable):
                await world.run()
        await good.execute(_END_WAITING)  # as the role's statement_timeout does
    assert not world.stand_in.calls, "Apple was not asked"
    world.database = good
    assert await world.run() == {"renewed": 3}


async def test_a_database_that_goes_away_during_a_run_loses_nothing(world: World, postgres_url: str) -> None:
    devices = [await world.device() for _ in range(3)]
    before = [await world.read(device) for device in devices]
    good = world.database
    url = make_url(postgres_url)
    world.stand_in.faults.set(Fault("renew", "hang"))
    async with (
        Gate(url.port or 5432) as gate,
        Database.connect(url.set(port=gate.port).render_as_string(hide_password=False), timeout=1) as world.database,
    ):
        job = asyncio.create_task(world.run(timeout=0.5))
        await until(lambda: world.stand_in.faults.calls["renew"] == 3)
        await gate.refuse()
        with pytest.raises(DatabaseUnavailable):
            await job
    world.stand_in.faults.clear()
    world.database = good
    for device, was in zip(devices, before, strict=True):
        stored = await world.read(device)
        assert 500 < stored.pop("due") <= storage.CLAIM, "due when the claim ends"
        assert stored == {name: value for name, value in was.items() if name != "due"}
    await world.make_due()
    assert await world.run() == {"renewed": 3}
