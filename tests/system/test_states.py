"""A dependency that answers but can't serve: each state shows in answers, readiness, log and metrics, then passes."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import dropwhile, pairwise
from pathlib import Path

import pytest

from services.local.fxa import DESKTOP_CLIENT_ID
from services.local.process import free_port
from shared.domain.identity import split_user
from shared.domain.tokens import claims_of
from tests.doubles.litellm import error_body
from tests.shared.stores.test_pgbouncer import PGBOUNCER, PgBouncer, readable
from tests.support.exposition import metric
from tests.support.sql import sql
from tests.support.valkey_cluster import ValkeyCluster
from tests.support.waiting import happens
from tests.system.clients import Caller, Seen
from tests.system.conftest import TABLES
from tests.system.faults import HEALTHY
from tests.system.harness import DATABASE, DATABASE_PASSWORD, HOST, System

#: A role that owns nothing, so that rights can be taken from it.
ROLE = "service"
WORK = ("chat", "exchange", "newcomer", "enrol", "password", "erasure", "export")
#: An export is recorded, and so needs to write.
_POSTGRES_OUT = {name: {503} for name in ("newcomer", "enrol", "password", "erasure", "export")}
#: What deletes, and what reads, some of these states allow.
_REDIS_OUT = {"chat": {503}, "enrol": {503}, "password": {503}, "erasure": {204, 503}, "export": {200, 503}}
_RIGHTS = "insert, update, delete on all tables in schema public"
_BOTH = ("auth-1", "gateway-1")
_EVENTS = {"FXA_CLIENT_IDS": DESKTOP_CLIENT_ID}


@dataclass(frozen=True, slots=True)
class State:
    """A state of a dependency.

    ``reason``: a pattern for the reason in the log; ``shown``: what readiness shows when that is something else.
    ``expected``: statuses by work, 200 for the rest. ``ready``: readiness' status, by service. ``metric``: what counts
    the refused work, by service.
    """

    name: str
    dependency: str
    reason: str = ""
    shown: str = ""
    expected: dict[str, set[int]] = field(default_factory=dict)
    ready: dict[str, int] = field(default_factory=dict)
    metric: dict[str, str] = field(default_factory=dict)


def _postgres(name: str, reason: str, **options: str | dict[str, int]) -> State:
    metric = {"auth-1": 'dependency_errors_total{dependency="postgres"}'}
    return State(name, "postgres", reason, expected=_POSTGRES_OUT, metric=metric, **options)  # type: ignore[arg-type]


def _redis(name: str, reason: str) -> State:
    metric = dict.fromkeys(_BOTH, 'dependency_errors_total{dependency="redis"}')
    return State(name, "redis", reason, expected=_REDIS_OUT, ready={"gateway-1": 503}, metric=metric)


READ_ONLY = _postgres("read-only", r"read_only_sql_transaction \(SQLSTATE 25006\)")
NO_RIGHTS = _postgres("no rights", r"insufficient_privilege \(SQLSTATE 42501\)")
UNMIGRATED = _postgres(
    "unmigrated", r"undefined_table \(SQLSTATE 42P01\)", shown="schema", ready=dict.fromkeys(_BOTH, 503)
)
POOLER = _postgres("PgBouncer killed", ".*Connection refused.*")
READONLY = _redis("READONLY", r".*\(READONLY\)")
OOM = _redis("OOM", r".*\(OOM\)")
LOADING = _redis("LOADING", r".*\(LOADING\)")
NODE = _redis("cluster node killed", r".*\(CLUSTERDOWN\)|.*Connect call failed.*|.*Connection refused.*")
SLOW_CHECKS = State("slow liveliness", "litellm")
REFUSED_KEY = State(
    "refused key", "litellm", expected={"chat": {503}}, metric={"gateway-1": "litellm_key_refusals_total"}
)
STATES = (READ_ONLY, NO_RIGHTS, UNMIGRATED, POOLER, READONLY, OOM, LOADING, NODE, SLOW_CHECKS, REFUSED_KEY)


@dataclass(slots=True)
class Row:
    """What was seen. ``shown``: reasons in readiness; ``told``: reasons in the log, "" for a return; all by service.

    ``healthy``: seconds from the state's end until all worked, below 0 if it never did. ``again``: statuses afterwards
    of what was sent again, and of what it should have ended.
    """

    state: State
    shown: dict[str, str] = field(default_factory=dict)
    ready: dict[str, int] = field(default_factory=dict)
    seen: dict[str, Seen] = field(default_factory=dict)
    healthy: float = -1.0
    told: dict[str, list[str]] = field(default_factory=dict)
    again: dict[str, int] = field(default_factory=dict)
    counted: dict[str, float] = field(default_factory=dict)


Change = Callable[[], Awaitable[object]]
Case = tuple[State, Change, Change]


async def run_state(caller: Caller, state: State, apply: Change, mend: Change) -> Row:
    row = Row(state)
    system = caller.system
    assert await _healthy(caller), f"not healthy before {state.name}"
    jwt = await caller.fxa_token()
    token = str((await caller.exchange(jwt)).json()["access_token"])
    assert (await caller.chat(token)).status == 200  # the account's totals are known from now on
    old = await caller.fxa_token()
    changed = str((await caller.exchange(old)).json()["access_token"])
    uid = split_user(claims_of(changed).sub)[0]
    event = await caller.event(uid, "password-change", changeTime=(int(time.time()) + 1) * 1000)
    erased, ended = await caller.account()
    assert [(await caller.chat(each)).status for each in (changed, ended)] == [200, 200]
    before = {name: len(text) for name, text in system.logs().items()}
    counted = {name: metric(await caller.metrics(name), series) for name, series in state.metric.items()}
    await apply()
    if state.reason:
        await happens(lambda: _shown(caller, row), 10)
    elif state is SLOW_CHECKS:
        await asyncio.sleep(2.5)  # two health checks
    newcomer = await caller.fxa_token()
    seen = await asyncio.gather(
        *(caller.chat(token), caller.exchange(jwt), caller.exchange(newcomer), caller.enrol(caller.device())),
        *(caller.deliver(event), caller.erase(erased), caller.export(claims_of(token).sub)),
    )
    row.seen = dict(zip(WORK, seen, strict=True))

    async def all_counted() -> bool:
        for name, series in state.metric.items():
            row.counted[name] = metric(await caller.metrics(name), series) - counted[name]
        return all(row.counted.values())

    await happens(all_counted, 3)  # what /metrics answers is kept for a moment
    await mend()
    mended = time.monotonic()
    if await _healthy(caller):
        row.healthy = time.monotonic() - mended
    row.again = {
        "password": (await caller.deliver(event)).status,
        "erasure": (await caller.erase(erased)).status,
        "export": (await caller.export(claims_of(token).sub)).status,
        "old FxA token": (await caller.exchange(old)).status,
        "old token": (await caller.chat(changed)).status,
        "erased": (await caller.chat(ended)).status,
    }

    async def all_back() -> bool:
        await asyncio.gather(*map(caller.readiness, _BOTH))
        for name in _BOTH:
            row.told[name] = list(_told(system.logs()[name][before[name] :], state.dependency))
        return all(told and told[-1] == "" for told in row.told.values())

    if state.reason:
        await happens(all_back, 10)
    return row


def _told(log: str, dependency: str) -> Iterator[str]:
    for line in log.splitlines():
        if '"dependency_' in line:
            entry = json.loads(line)
            if entry["dependency"] == dependency:
                yield entry["reason"] if entry["event"] == "dependency_out" else ""


async def _shown(caller: Caller, row: Row) -> bool:
    """Whether every service shows the reason."""
    for name, seen in zip(_BOTH, await asyncio.gather(*map(caller.readiness, _BOTH)), strict=True):
        row.shown[name] = str(seen.json()["checks"][row.state.dependency]["error"])
        row.ready[name] = seen.status
    return all(re.fullmatch(row.state.shown or row.state.reason, shown) for shown in row.shown.values())


async def _healthy(caller: Caller) -> bool:
    async def well() -> bool:
        jwt = await caller.fxa_token()
        newcomer, enrolled, *ready = await asyncio.gather(
            caller.exchange(jwt), caller.enrol(caller.device()), *map(caller.readiness, _BOTH)
        )
        if (newcomer.status, enrolled.status) != (200, 201):
            return False
        chat = await caller.chat(str(newcomer.json()["access_token"]))
        return chat.status == 200 and all(one.json()["status"] == "ready" for one in ready)

    return await happens(well, 20)


def _sql(system: System, *statements: str, database: str = DATABASE, cut: bool = False) -> Change:
    """:param cut: ends the connections to the database between the first statement and the next."""

    async def run() -> None:
        for number, statement in enumerate(statements):
            await asyncio.to_thread(sql, system.postgres.url(database), statement)
            if cut and number == 0:
                ended = f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{ROLE}'"
                await asyncio.to_thread(sql, system.postgres.url("postgres"), ended)

    return run


async def postgres_and_cluster_rows(folder: Path, template: Path) -> list[Row]:
    cluster = ValkeyCluster(folder / "cluster")
    node = cluster.nodes[-1]
    port = free_port()
    url = f"postgresql://{ROLE}:{DATABASE_PASSWORD}@{HOST}:{port}/{DATABASE}"
    environment = {"DATABASE_URL": url, "REDIS_URL": cluster.url, **_EVENTS}
    system = System(folder, template, listens={"postgres": port}, environment=environment)

    async def prepare() -> None:
        await _sql(system, f"create role {ROLE} login password '{DATABASE_PASSWORD}'", f"grant {_RIGHTS} to {ROLE}")()
        await _sql(
            system,
            f"grant select on all tables in schema public to {ROLE}",
            f"grant usage on all sequences in schema public to {ROLE}",
            f"grant execute on all functions in schema public to {ROLE}",
        )()

    async def restart_node() -> None:
        node.process.start()
        await happens(lambda: asyncio.to_thread(lambda: all(map(cluster._whole, cluster.nodes))), 20)

    read_only = f"alter role {ROLE} set default_transaction_read_only = on"
    writable = f"alter role {ROLE} reset default_transaction_read_only"
    closed = f"alter database {DATABASE} allow_connections false"
    full, empty = f"{DATABASE}_full", f"{DATABASE}_empty"
    cases: list[Case] = [
        (READ_ONLY, _sql(system, read_only, cut=True), _sql(system, writable, cut=True)),
        (NO_RIGHTS, _sql(system, f"revoke {_RIGHTS} from {ROLE}"), _sql(system, f"grant {_RIGHTS} to {ROLE}")),
        (
            UNMIGRATED,
            _sql(
                system,
                closed,
                f"create database {empty}",
                f"alter database {DATABASE} rename to {full}",
                f"alter database {empty} rename to {DATABASE}",
                database="postgres",
                cut=True,
            ),
            _sql(
                system,
                closed,
                f"drop database {DATABASE} with (force)",
                f"alter database {full} rename to {DATABASE}",
                f"alter database {DATABASE} allow_connections true",
                database="postgres",
                cut=True,
            ),
        ),
        (NODE, lambda: asyncio.to_thread(node.process.kill), restart_node),
    ]
    with ExitStack() as stack:
        await asyncio.to_thread(stack.enter_context, cluster)
        return await _run(system, cases, prepare)


async def redis_litellm_and_pooler_rows(folder: Path, template: Path) -> list[Row]:
    port = free_port()
    environment = {"LITELLM_HEALTH_TIMEOUT_SECONDS": "0.3", **_EVENTS}
    system = System(folder, template, environment=environment, ports={"postgres": port} if _POOLED else {})

    def valkey(*command: str) -> Change:
        async def run() -> None:
            with system.valkey.client() as client:
                await asyncio.to_thread(client.execute_command, *command)

        return run

    usual = dict(system.valkey.options)

    async def load_slowly() -> None:
        """Restart Valkey from a dump of five hundred keys of a kilobyte, after each of which it answers clients."""
        with system.valkey.client() as client:
            for number in range(500):
                client.set(f"loaded:{number}", random.randbytes(1100))
            client.execute_command("SAVE")
        system.valkey.process.kill()
        slow = {"appendonly": "no", "key-load-delay": "20000", "loading-process-events-interval-bytes": "1024"}
        system.valkey.options = {**usual, **slow}
        system.valkey.initialise()
        system.valkey.process.start()

    async def load_quickly() -> None:
        system.valkey.process.kill()
        system.valkey.options = usual
        await asyncio.to_thread(system.valkey.start)

    def liveliness(seconds: float) -> Change:
        url = f"http://{HOST}:{system.listens['litellm']}/double/liveliness"

        async def run() -> None:
            async with Caller.open(system) as caller:
                assert (await caller.ask("POST", url, json={"seconds": seconds})).status == 200

        return run

    async def refuse_key() -> None:
        body = error_body("Authentication Error", "token_not_found_in_db", "401")
        async with Caller.open(system) as caller:
            headers = {"Content-Type": "application/json"}
            await caller.script("double", [("send", json.dumps(body))], status=401, headers=headers)

    async def take_key() -> None:
        system.parts["litellm"].kill()
        system.parts["litellm"].start()
        await system.parts["litellm"].wait_ready()

    cases: list[Case] = [
        (READONLY, valkey("REPLICAOF", HOST, str(free_port())), valkey("REPLICAOF", "NO", "ONE")),
        (OOM, valkey("CONFIG", "SET", "maxmemory", "1"), valkey("CONFIG", "SET", "maxmemory", "0")),
        (LOADING, load_slowly, load_quickly),
        (SLOW_CHECKS, liveliness(1), liveliness(0)),
        (REFUSED_KEY, refuse_key, take_key),
    ]
    if not _POOLED:
        return await _run(system, cases)
    with _pooler(system, port) as bouncer:

        async def start_pooler() -> None:
            await asyncio.to_thread(bouncer.start, system.environment["DATABASE_URL"])

        cases.append((POOLER, lambda: asyncio.to_thread(bouncer.process.kill), start_pooler))
        return await _run(system, cases, start_pooler)


_POOLED = Path(PGBOUNCER).exists()


@contextmanager
def _pooler(system: System, port: int) -> Iterator[PgBouncer]:
    with readable() as folder:
        bouncer = PgBouncer(folder / "pgbouncer", system.postgres, "transaction", port=port)
        try:
            yield bouncer
        finally:
            bouncer.process.kill()


async def _run(system: System, cases: Sequence[Case], prepare: Change | None = None) -> list[Row]:
    try:
        await system.start()
        if prepare is not None:
            await prepare()
        async with Caller.open(system) as caller:
            return [await run_state(caller, state, apply, mend) for state, apply, mend in cases]
    finally:
        system.stop()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, template: Path) -> dict[str, Row]:
    """All rows, on two systems at the same time."""
    folder = tmp_path_factory.mktemp("states")

    async def run() -> Sequence[list[Row]]:
        return await asyncio.gather(
            postgres_and_cluster_rows(folder / "postgres", template),
            redis_litellm_and_pooler_rows(folder / "redis", template),
        )

    found = {row.state.name: row for some in asyncio.run(run()) for row in some}
    TABLES.append(("states of dependencies: status of each answer", _table(found)))
    return found


def _row(rows: dict[str, Row], state: State) -> Row:
    if state is POOLER and not _POOLED:
        pytest.skip("pgbouncer (Debian's package) is not installed")
    return rows[state.name]


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
def test_a_state_is_answered_and_counted_as_what_it_is(rows: dict[str, Row], state: State) -> None:
    row = _row(rows, state)
    allowed = {**{name: {200} for name in WORK}, "enrol": {201}, "erasure": {204}, **state.expected}
    wrong = {name: str(seen) for name, seen in row.seen.items() if seen.status not in allowed[name]}
    assert not wrong
    assert all("Retry-After" in seen.headers for seen in row.seen.values() if seen.status == 503)
    assert all(row.counted.values()), row.counted


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
def test_a_changed_password_and_an_erasure_hold_after_a_state(rows: dict[str, Row], state: State) -> None:
    again = dict(_row(rows, state).again)
    assert again.pop("erasure") in (204, 404), "404: it was taken the first time"
    assert again.pop("erased") in (401, 403), "403: requests of it are not in the ledger yet"
    assert again == {"password": 200, "export": 200, "old FxA token": 400, "old token": 401}


@pytest.mark.parametrize("state", [state for state in STATES if state.reason], ids=lambda state: state.name)
def test_readiness_and_log_name_the_state(rows: dict[str, Row], state: State) -> None:
    row = _row(rows, state)
    for name in _BOTH:
        assert re.fullmatch(state.shown or state.reason, row.shown[name]), row.shown
        assert row.ready[name] == state.ready.get(name, 200)
        told = list(dropwhile(lambda each: each == "", row.told[name]))  # the end of an outage before the state
        outage = told[: told.index("")]
        named = [reason for reason in outage if re.fullmatch(state.reason, reason)]
        assert named, told
        assert len(named) == len(set(named)), told
        # one line each way; the end of some states cuts connections that worked again, which is an outage of its own
        assert told[-1] == "", told
        assert all(each != after for each, after in pairwise(told)), told


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
def test_all_is_well_soon_after_a_state(rows: dict[str, Row], state: State) -> None:
    assert 0 <= _row(rows, state).healthy <= HEALTHY


@pytest.mark.parametrize("state", [LOADING, NODE], ids=lambda state: state.name)
def test_a_chat_does_not_wait_for_what_redis_says_it_can_not_do(rows: dict[str, Row], state: State) -> None:
    assert rows[state.name].seen["chat"].seconds < 0.9


def test_a_refused_key_is_told_apart_from_an_outage(rows: dict[str, Row]) -> None:
    assert rows[REFUSED_KEY.name].seen["chat"].json()["error"]["mlpa_code"] == 10


def _table(rows: dict[str, Row]) -> list[str]:
    lines = [f"{'dependency':11}{'state':21}{''.join(f'{name:10}' for name in WORK)}{'healthy s':11}readiness"]
    for row in rows.values():
        cells = "".join(f"{row.seen[name].status:<10}" for name in WORK)
        shown = row.shown.get("gateway-1", "")
        lines.append(f"{row.state.dependency:11}{row.state.name:21}{cells}{row.healthy:<11.1f}{shown}")
    return lines
