"""Budgets at size: a day of ten million ledger rows, a million users in Redis, ten thousand open streams.

While the streams run, and other users spend small budgets as fast as they can, Redis fails over to its replica and
then restarts with nothing. HAProxy, configured as in ``deploy/haproxy``, leads to it.
``python -m tests.bench.bench_scale [ROWS USERS STREAMS]`` runs it smaller.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg2
import uvloop

from services.gateway.budget.models import Delivery, Timings, new_id
from services.gateway.ledger.storage import LedgerStorage
from services.local.postgres import PostgresServer
from services.local.process import free_port
from services.local.valkey import ValkeyServer
from shared.domain.identity import SHARDS
from shared.domain.outcome import Outcome
from shared.state import layout
from shared.state.packed import Details, LedgerRow
from shared.stores.postgres import Database
from tests.bench.figures import Row, spread
from tests.bench.relay import clients
from tests.bench.stores import gateway_settings, stores
from tests.deploy.test_haproxy import proxy
from tests.services.gateway.budget.support import ask, opened, principal, row as budget_row, rows
from tests.support.service_types import toml
from tests.support.sql import sql
from tests.support.waiting import until

#: Seconds that all of it may take.
LONGEST = 1800.0
ROWS, USERS, STREAMS = 10_000_000, 1_000_000, 10_000
GATEWAYS, SPENDERS = 4, 12
#: An event every 5 s for four minutes.
MODEL = "paced-5000-48"
OPENED_WITHIN = 60.0
TOTAL_NANO, SMALL_NANO = 10**12, 2_500  # the small one is spent within the run
#: Two service types with a total budget, one without; users of the last spend their small budgets meanwhile.
TYPES = {
    "ai": {"max_budget": "1000", "total_budget": str(TOTAL_NANO // 10**9)},
    "memories": {"max_budget": "1000", "total_budget": str(TOTAL_NANO // 10**9)},
    "s2s": {"max_budget": f"{SMALL_NANO / 10**9:.9f}"},
}
#: The cost of one of the upstream's streams.
STREAM_NANO = 110

_FILL = """
insert into ledger (id, request_id, user_id, service_type, model, purpose, prompt_tokens, completion_tokens, cost_nano,
                    period_seconds, period_index, outcome, admitted_at, settled_at)
select lpad(to_hex(cast(extract(epoch from at) * 1000 as bigint)), 12, '0') || left(md5(number::text), 20),
       gen_random_uuid(), lpad(to_hex(number %% %(users)s), 32, '0') || ':ai', 'ai',
       (array['plain', 'large', 'small'])[1 + number %% 3], 'chat', 500, 300, 1000, 86400,
       floor(extract(epoch from at) / 86400), 'success', at, at + interval '5 seconds'
from (select number, date_trunc('day', now(), 'UTC') + (now() - date_trunc('day', now(), 'UTC'))
             * (number - %(first)s) / %(count)s as at
      from generate_series(%(first)s, %(first)s + %(count)s - 1) as number) as request
"""
#: Batches of a round of writing, and their rows.
_BATCHES, _BATCH = 8, 500
_INDEXES = """
select relname, replace(pg_get_indexdef(oid), ' ON ONLY ', ' ON ') from pg_class
where oid in (select indexrelid from pg_index where indrelid = cast('ledger' as regclass) and not indisprimary)
"""
#: Gives users the state that another one has.
_COPY = """
local fields, identity = redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2])
for at = 2, #ARGV do
  redis.call('HSET', ARGV[1] .. 'u:' .. ARGV[at] .. ':ai', unpack(fields))
  redis.call('EXPIRE', ARGV[1] .. 'u:' .. ARGV[at] .. ':ai', 172800)
  redis.call('HSET', ARGV[1] .. 'i:' .. ARGV[at], unpack(identity))
  redis.call('EXPIRE', ARGV[1] .. 'i:' .. ARGV[at], 172800)
end
"""


@dataclass(slots=True)
class Rig:
    """The running system, and a way to ask it."""

    database: str
    token: Callable[[int, str], str]
    ports: list[int]
    gateways: list[subprocess.Popen[bytes]]
    log: Path

    async def status(self, gateway: int, token: str) -> int:
        """The status of a short chat, over a connection of its own; 0 for no answer."""
        try:
            async with asyncio.timeout(10):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[gateway])
                writer.write(clients.request("plain", token, stream=False))
                head = await reader.readline()
                writer.close()
                return int(head.split()[1])
        except (OSError, TimeoutError, IndexError):
            return 0


@dataclass(slots=True)
class Load:
    """Users of small budgets who ask one after the other at all gateways; ``served`` counts their answers by user."""

    rig: Rig
    served: dict[int, int] = field(default_factory=dict)
    statuses: dict[int, int] = field(default_factory=dict)

    async def spend(self, user: int) -> None:
        token, turn = self.rig.token(user, "s2s"), user
        while True:
            turn += 1
            status = await self.rig.status(turn % GATEWAYS, token)
            self.statuses[status] = self.statuses.get(status, 0) + 1
            self.served[user] = self.served.get(user, 0) + (status == 200)
            await asyncio.sleep(0.02 if status == 200 else 0.2)


async def run(rows: int = ROWS, users: int = USERS, streams: int = STREAMS) -> list[Row]:
    """Rows of (name, figure), each said as soon as it is there: the rest takes minutes."""
    found: list[Row] = []

    def note(*figures: Row) -> None:
        found.extend(figures)
        for name, figure in figures:
            _say(f"{name}: {figure}")

    async with AsyncExitStack() as stack:
        folder, first, postgres, database = stack.enter_context(stores())
        second = stack.enter_context(ValkeyServer(folder / "second", free_port()))
        with second.client() as client:
            client.replicaof("127.0.0.1", str(first.port))  # type: ignore[no-untyped-call]
        began = time.perf_counter()
        note(*await asyncio.to_thread(_fill_ledger, database, rows, users))
        note(*await _write(database, postgres))
        note(await _fill_redis(first, database, users))
        _say(f"filled in {time.perf_counter() - began:.0f} s")

        rig = await stack.enter_async_context(_rig(folder, database, [first, second]))
        before = await _redis_bytes(first)
        load = clients.Load()
        running = [asyncio.create_task(_stream(rig, number, streams, users, load)) for number in range(streams)]
        stack.callback(_cancel, running)
        await _opened(load, running, streams)
        note(("streams open over four gateways", f"{len(load.first):,}, {load.errors} failed"))
        note(("Valkey, memory of an open request", f"{(await _redis_bytes(first) - before) / streams:.0f} bytes"))
        note(("gateway, RSS with its share of the streams", _rss(rig)))

        spenders = Load(rig)
        spending = [asyncio.create_task(spenders.spend(user)) for user in range(SPENDERS)]
        stack.callback(_cancel, spending)
        with second.client() as client:
            await until(lambda: client.info("replication")["master_link_status"] == "up", 120)
        await asyncio.sleep(5)
        note(("failover to the replica", await _lost(rig, users, lambda: _promote(first, second))))
        await asyncio.sleep(10)
        note(("restart with nothing", await _lost(rig, users, lambda: _restart(second))))
        await asyncio.sleep(10)
        _cancel(spending)
        await asyncio.gather(*running)
        note(("streams that ended with [DONE]", f"{load.requests - load.errors:,} of {streams:,}"))
        note(*await _accounts(rig, second, load.requests - load.errors, spenders))
    return found


async def _stream(rig: Rig, number: int, streams: int, users: int, load: clients.Load) -> None:
    await asyncio.sleep(OPENED_WITHIN * number / max(streams, 2000))
    token = rig.token(number % users, "ai")
    await clients.stream(rig.ports[number % GATEWAYS], clients.request(MODEL, token, stream=True), load)


async def _opened(load: clients.Load, running: list[asyncio.Task[None]], streams: int) -> None:
    await until(lambda: len(load.first) + load.errors >= streams, 4 * OPENED_WITHIN)
    _say(f"{len(load.first)} streams open, load {os.getloadavg()}")


def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


# --- faults ----------------------------------------------------------------------------------------------------------


async def _promote(old: ValkeyServer, new: ValkeyServer) -> None:
    """Fail over as Sentinel or an operator does; the proxy finds the new primary by itself."""
    old.kill()
    with new.client() as client:
        client.replicaof("NO", "ONE")  # type: ignore[no-untyped-call]


async def _restart(server: ValkeyServer) -> None:
    server.kill()
    await asyncio.to_thread(server.start)


async def _lost(rig: Rig, users: int, fault: Callable[[], Awaitable[None]]) -> str:
    """Seconds from a fault until every gateway serves every service type, each to a user who was not there before."""
    began = time.perf_counter()
    await fault()
    took = time.perf_counter() - began

    async def served(gateway: int, name: str, user: int) -> float:
        token = rig.token(user, name)
        while await rig.status(gateway, token) != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return time.perf_counter() - began

    async with asyncio.timeout(300):
        seconds = await asyncio.gather(
            *(
                served(gateway, name, users - 1 - GATEWAYS * place - gateway)
                for gateway in range(GATEWAYS)
                for place, name in enumerate(TYPES)
            )
        )
    by_type = ", ".join(f"{name} {max(seconds[place :: len(TYPES)]):.2f} s" for place, name in enumerate(TYPES))
    return f"all served after {max(seconds):.2f} s, goal 2 s ({by_type}; {took:.2f} s of it without a server)"


# --- what is measured before -----------------------------------------------------------------------------------------


def _fill_ledger(url: str, rows: int, users: int) -> list[Row]:
    """Rows of today, and their sums, as the triggers would have made them."""
    sums = importlib.import_module("migrations.versions.0005_sums_of_the_ledger").sums
    half = rows // 2
    indexes = sql(url, _INDEXES)
    sql(url, "alter table ledger disable trigger user", "alter table ledger drop constraint ledger_pkey")
    sql(url, *(f"drop index {name}" for name, _ in indexes))
    _at_once("fill", url, *((str(users), str(at), str(half)) for at in (0, half)))
    again = ["alter table ledger add primary key (id, admitted_at)", *(made for _, made in indexes)]
    _at_once("run", url, *((statement,) for statement in [*again, *sums("select 1 as sign, ledger.* from ledger")]))
    sql(url, "alter table ledger enable trigger user")
    found = []
    for table in ("ledger", "user_spend", "ledger_totals", "ledger_hours"):
        sql(url, f"vacuum (analyze) {table}")
        ((heap, indexes, count),) = sql(
            url,
            f"select sum(pg_table_size(oid)), sum(pg_indexes_size(oid)), (select count(*) from {table}) from pg_class"
            f" where oid = cast('{table}' as regclass) or oid in (select relid from pg_partition_tree('{table}'))",
        )
        each = f"{heap / count:.0f} + {indexes / count:.0f} bytes a row" if count else ""
        found.append((f"{table}, a day", f"{count:,} rows, {(heap + indexes) / 2**30:.2f} GiB ({each}, with indexes)"))
    return found


def _at_once(what: str, url: str, *works: tuple[str, ...]) -> None:
    """Works of this module, each in a process."""
    program = [sys.executable, "-m", "tests.bench.bench_scale", what, url]
    processes = [subprocess.Popen([*program, *arguments]) for arguments in works]
    if {process.wait() for process in processes} != {0}:
        raise RuntimeError("the ledger could not be filled")


def _fill_part(url: str, users: int, first: int, count: int) -> None:
    step = max(1, count // 10)
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for at in range(first, first + count, step):
            cursor.execute(_FILL, {"users": users, "first": at, "count": min(step, first + count - at)})
    connection.close()


async def _write(url: str, postgres: PostgresServer) -> list[Row]:
    """Batches as the gateways write them, into the day with its rows, with the sums that the ledger keeps and without.

    The CPU is that of both sides: PostgreSQL, and the writer.
    """
    details, now = Details("request", "s2s", "plain", "chat", 86_400), int(time.time() * 1000)
    figures: dict[str, list[tuple[float, float]]] = {"enable": [], "disable": []}
    async with Database.connect(url, timeout=30) as database:
        storage = LedgerStorage(database)
        for number in range(5):
            for sums, seen in figures.items():
                sql(url, f"alter table ledger {sums} trigger user")
                before, began = _cpu(postgres.process.pid), time.perf_counter()
                for batch in range(_BATCHES):
                    users = [f"{(at * 7919 + number * _BATCHES + batch) % 10**6:032x}:s2s" for at in range(_BATCH)]
                    await storage.write(
                        [
                            LedgerRow(new_id(), user, 1, now, 1, 1, Outcome.SUCCESS, details, settled_ms=now)
                            for user in users
                        ]
                    )
                rows, seconds = _BATCHES * _BATCH, time.perf_counter() - began
                seen.append((rows / seconds, rows / (_cpu(postgres.process.pid) - before)))
    sql(
        url,
        "alter table ledger enable trigger user",
        "delete from ledger where service_type = 's2s'",
        "delete from user_spend where user_id like '%:s2s'",
    )
    names = {"enable": "ledger rows of one writer", "disable": "the same without the sums that the ledger keeps"}
    return [
        (names[sums], "; ".join(map(spread, zip(*seen, strict=True), ("a second", "a second and core"))))
        for sums, seen in figures.items()
    ]


def _cpu(pid: int | None) -> float:
    server, seconds = psutil.Process(pid), 0.0
    for one in (psutil.Process(), server, *server.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # PostgreSQL's own workers come and go
            times = one.cpu_times()
            seconds += times.user + times.system
    return seconds


async def _fill_redis(server: ValkeyServer, database: str, users: int) -> Row:
    """The state that one user has after a request, for all of them."""
    kind = budget_row("ai", max_budget_nano=10**12)
    async with opened(server.url, database, rows(kind), Timings()) as (budgets, _, _):
        budgets.settle(await budgets.admit(ask(principal(kind, user=1))), Delivery("abort", sent=False))
        await budgets._queue.all_settled(10)
        await budgets._queue.flush()
    template = principal(kind, user=1)
    shard = layout.of_user(template.user_id)
    before = await _redis_bytes(server)
    members: list[list[str]] = [[] for _ in range(SHARDS)]
    for user in range(users):
        identity = f"{user:032x}"
        members[layout.of_identity(identity).number].append(identity)
    with server.client(timeout=60) as client:
        copy = client.register_script(_COPY)
        keys = [shard.user(template.user_id), shard.identity(template.identity)]
        for number, identities in enumerate(members):
            for at in range(0, len(identities), 2000):
                copy(keys=keys, args=[layout.SHARD_KEYS[number].prefix, *identities[at : at + 2000]])
        keys_held = client.dbsize()
    each = (await _redis_bytes(server) - before) / users
    return "Valkey, memory of a user", f"{each:.0f} bytes, of {users:,} ({keys_held:,} keys)"


async def _redis_bytes(server: ValkeyServer) -> int:
    """The memory of a server without that of its connections, those of replicas included."""
    with server.client() as client:
        memory = client.info("memory")
    connections = sum(memory[f"mem_{name}"] for name in ("total_replication_buffers", "clients_normal"))
    return int(memory["used_memory"] - connections)


# --- what is true in the end -----------------------------------------------------------------------------------------


async def _accounts(rig: Rig, server: ValkeyServer, ended: int, spenders: Load) -> list[Row]:
    """The clients' view beside the ledger's. A request whose client left may be charged, and is not lost."""
    await until(lambda: _waiting(server) == 0, 60)
    ((count, cost),) = sql(rig.database, _CHARGED)
    small = {user: (int(count), int(spent)) for user, count, spent in sql(rig.database, _BY_USER)}
    ((off,),) = sql(rig.database, _SUMS_OFF)
    lost = sum(max(0, served - small.get(f"{user:032x}:s2s", (0, 0))[0]) for user, served in spenders.served.items())
    most = max(spent for _, spent in small.values())
    return [
        (
            "rows of streams lost",
            f"{ended - count:,} of {ended:,}; charged {cost:,} nano-dollars, true {ended * STREAM_NANO:,}",
        ),
        ("rows of small chats lost", f"{lost:,} of {sum(spenders.served.values()):,}"),
        ("over budget", f"{max(0, most - SMALL_NANO):,} nano-dollars; the most spent was {most:,} of {SMALL_NANO:,}"),
        ("users whose sum is not that of their rows", f"{off:,}"),
        (
            "statuses that small chats saw",
            ", ".join(f"{status}: {n:,}" for status, n in sorted(spenders.statuses.items())),
        ),
    ]


_CHARGED = f"select count(*), coalesce(sum(cost_nano), 0) from ledger where model = '{MODEL}' and outcome = 'success'"
_BY_USER = (
    "select user_id, count(*) filter (where outcome = 'success'), sum(cost_nano) from ledger"
    " where service_type = 's2s' group by 1"
)
_SUMS_OFF = """
select count(*) from (select user_id, sum(cost_nano) as spent from ledger group by 1) as row
full join user_spend using (user_id) where spent is distinct from spent_nano
"""


def _waiting(server: ValkeyServer) -> int:
    """Ledger rows in Redis that PostgreSQL may not have."""
    with server.client() as client:
        return sum(int(client.hlen(shard.outbox)) for shard in layout.SHARD_KEYS)  # type: ignore[arg-type]


def _rss(rig: Rig) -> str:
    return spread([psutil.Process(one.pid).memory_info().rss / 2**20 for one in rig.gateways], "MiB")


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@asynccontextmanager
async def _rig(folder: Path, database: str, servers: list[ValkeyServer]) -> AsyncIterator[Rig]:
    """Four gateways, and what is behind them."""
    upstream, redis_port, ports = free_port(), free_port(), [free_port() for _ in range(GATEWAYS)]
    types = "".join(toml(name, rpm=0, tpm=0, **row) for name, row in TYPES.items())
    redis = f"redis://127.0.0.1:{redis_port}"
    issuer, environment = gateway_settings(folder, types, database=database, redis=redis, upstream=upstream)

    def token(user: int, name: str) -> str:
        text: str = issuer.issue(user_id=f"{user:032x}:{name}", client_id="bench", scope=name, amr="fxa").text
        return text

    async with AsyncExitStack() as stack:
        stack.enter_context(proxy(folder, redis_port, servers))
        log = folder / "log"
        output = stack.enter_context(log.open("wb"))

        def start(*command: str, **more: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdout=output,
                stderr=output,
                env={**environment, "LOG_LEVEL": "WARNING", **more},
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        start("tests.bench.relay.upstream", str(upstream), str(folder / "jwks"))
        gateways = [start("services.cli.main", "gateway", PORT=str(port)) for port in ports]
        rig = Rig(database, token, ports, gateways, log)

        newcomers = itertools.count(2**64)

        async def all_serve() -> bool:
            user = next(newcomers)  # one who has asked too often has spent the small budget
            asked = [rig.status(gateway, token(user, name)) for gateway in range(GATEWAYS) for name in TYPES]
            return set(await asyncio.gather(*asked)) == {200}

        try:
            await until(all_serve, 60)
        except BaseException:
            _say(log.read_text()[-3000:])
            raise
        yield rig


if __name__ == "__main__":
    if sys.argv[1:2] == ["fill"]:
        _fill_part(sys.argv[2], *map(int, sys.argv[3:]))
    elif sys.argv[1:2] == ["run"]:
        sql(sys.argv[2], "set work_mem = '256MB'", "set maintenance_work_mem = '512MB'", sys.argv[3])
    else:
        for name, figure in uvloop.run(run(*map(int, sys.argv[1:]))):
            print(f"{name:45} {figure}")
