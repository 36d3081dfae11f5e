"""The whole system on the real LiteLLM with its real database: customers, containment, keys, spend.

Opt-in, since LiteLLM takes a minute and 800 MB to install: LITELLM_DB_TOOLS names the folder with its ``setup.sh`` and
``start.sh``. It is installed below LITELLM_DB_DIR (default: .mlpa/litellm-db) once per LITELLM_VERSION.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.auth.provisioning.client import LiteLLMAdmin, MasterKeyRefused
from services.auth.provisioning.models import Budget
from services.local import litellm as local_litellm
from services.local.postgres import PostgresServer, binaries
from services.local.process import Account, Process, Program, answers, free_port
from shared.domain.money import NANO
from tests.support.exposition import metric
from tests.support.waiting import until
from tests.system.clients import Caller
from tests.system.conftest import FULL
from tests.system.harness import ROOT, System

TOOLS = os.environ.get("LITELLM_DB_TOOLS")
VERSION = os.environ.get("LITELLM_VERSION", "1.106.2")
MASTER_KEY = "sk-real-master-key-3f9a1c77"
GPT, SLOW = "openai/gpt-4o", "local/slow"
REQUESTS = 1000 if FULL else 200

pytestmark = pytest.mark.skipif(not TOOLS, reason="LITELLM_DB_TOOLS names no folder")


@dataclass
class RealLiteLLM:
    url: str
    process: Process

    def admin(self, session: aiohttp.ClientSession, key: str = MASTER_KEY) -> LiteLLMAdmin:
        return LiteLLMAdmin(session, [self.url], key, timeout=20)

    async def ask(self, session: aiohttp.ClientSession, method: str, path: str, key: str, body: Any = None) -> Any:
        """Status and decoded body."""
        headers = {"Authorization": f"Bearer {key}"}
        async with session.request(method, self.url + path, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def customer(self, session: aiohttp.ClientSession, user: str) -> Any:
        """The row of a customer with its budget; None when there is none."""
        path = f"/customer/info?end_user_id={user.replace('+', '%2B')}"
        status, body = await self.ask(session, "GET", path, MASTER_KEY)
        return body if status == 200 else None


@pytest.fixture(scope="module")
def litellm(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealLiteLLM]:
    assert TOOLS is not None
    folder = tmp_path_factory.mktemp("litellm")
    installed = Path(os.environ.get("LITELLM_DB_DIR", ROOT / ".mlpa" / "litellm-db")) / VERSION
    database = postgres_server.ensure_database(f"litellm_{uuid.uuid4().hex}")
    psql = binaries(Account.unprivileged())
    environment = {**os.environ, "PATH": f"{psql}:{os.environ['PATH']}", "LITELLM_VERSION": VERSION}
    subprocess.run([f"{TOOLS}/setup.sh", str(installed), database], env=environment, check=True, timeout=900)
    # Models that need no provider; spend is written every second or two instead of every ten to fifteen.
    config = folder / "config.yaml"
    config.write_text(
        local_litellm.CONFIG.read_text() + "  database_url: os.environ/DATABASE_URL\n  proxy_batch_write_at: 1\n"
    )
    for module in ("litellm_provider.py", "litellm_call_log.py"):
        (folder / module).write_text((local_litellm.HERE / module).read_text())
    port = free_port()
    program = Program(
        "LiteLLM with a database",
        (f"{TOOLS}/start.sh", str(installed), str(port), database, str(config)),
        env={**environment, "LITELLM_MASTER_KEY": MASTER_KEY, "PYTHONPATH": ""},
        cwd=folder,
    )
    process = Process(program, folder / "litellm.log")
    process.start()
    real = RealLiteLLM(f"http://127.0.0.1:{port}", process)
    try:
        process.wait_ready(lambda: answers(f"{real.url}/health/liveliness"), timeout=120)
        yield real
    finally:
        process.stop()


@pytest.fixture(scope="module")
def virtual_key(litellm: RealLiteLLM, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Made by the command."""
    folder = tmp_path_factory.mktemp("env")
    settings = f"LITELLM_API_BASE={litellm.url}\nMASTER_KEY={MASTER_KEY}\n"
    (folder / ".env").write_text(settings)
    mlpa = ROOT / ".venv" / "bin" / "mlpa"
    plain = {"PATH": os.environ["PATH"]}
    subprocess.run([mlpa, "virtual-key"], cwd=folder, env=plain, check=True, timeout=60)
    first, _, key = (folder / ".env").read_text().rpartition("MLPA_VIRTUAL_KEY=")
    assert first == settings
    return key.strip()


@pytest.fixture(scope="module")
def real_system(
    litellm: RealLiteLLM, virtual_key: str, template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    environment = {
        "LITELLM_API_BASE": litellm.url,
        "MASTER_KEY": MASTER_KEY,
        "MLPA_VIRTUAL_KEY": virtual_key,
        "LITELLM_PROVISION_USERS": "true",
    }
    whole = System(tmp_path_factory.mktemp("system") / "litellm", template, environment=environment)
    asyncio.run(whole.start())
    yield whole
    whole.stop()


async def test_the_first_exchange_makes_budgets_and_customer_with_the_right_figures(
    real_system: System, litellm: RealLiteLLM
) -> None:
    async with Caller.open(real_system) as caller, aiohttp.ClientSession() as session:
        user, _ = await caller.account()
        device = await caller.enrolled()
        assert (await caller.exchange_device(device, "s2s")).status == 200
        for name, service_type in ((user, "ai"), (f"{device.key_id_b64}:s2s", "s2s")):
            row = await until(lambda name=name: litellm.customer(session, name))  # type: ignore[misc]
            assert row["litellm_budget_table"]["budget_id"] == f"mlpa:{service_type}"
        budgets = await litellm.admin(session).budgets(["mlpa:ai", "mlpa:s2s"])
        assert set(budgets.values()) == {Budget(f"mlpa:{name}", 2000 * NANO, "1d") for name in ("ai", "s2s")}
        found = real_system.sql("select litellm_budget from users where user_id = %(user)s", user=user)
        assert found == [("mlpa:ai",)]
        _, rows = await litellm.ask(session, "POST", "/budget/info", MASTER_KEY, {"budgets": ["mlpa:ai"]})
        assert rows[0]["rpm_limit"] is None and rows[0]["tpm_limit"] is None


async def test_a_tier_change_moves_the_customer(real_system: System, litellm: RealLiteLLM) -> None:
    """The next sweep finds it, within a minute or so."""
    async with Caller.open(real_system) as caller, aiohttp.ClientSession() as session:
        user, _ = await caller.account()
        await until(lambda: litellm.customer(session, user))
        seen = await caller.admin("POST", f"/user/{user.replace(':', '%3A')}/budget", json={"service_type": "s2s"})
        assert seen.status == 200, seen

        async def moved() -> bool:
            row = await litellm.customer(session, user)
            return bool(row["litellm_budget_table"]["budget_id"] == "mlpa:s2s")

        await until(moved, 100)


async def test_a_customer_that_litellm_made_by_itself_gets_its_budget(
    real_system: System, litellm: RealLiteLLM, virtual_key: str
) -> None:
    """A request that came before auth's made LiteLLM add the customer, without a budget."""
    async with Caller.open(real_system) as caller, aiohttp.ClientSession() as session:
        uid = uuid.uuid4().hex
        body = {"model": GPT, "user": f"{uid}:ai", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20}
        status, _ = await litellm.ask(session, "POST", "/v1/chat/completions", virtual_key, body)
        assert status == 200
        row = await until(lambda: litellm.customer(session, f"{uid}:ai"))
        assert row["litellm_budget_table"] is None
        await caller.account(uid)

        async def has_budget() -> bool:
            row = await litellm.customer(session, f"{uid}:ai")
            return bool(row["litellm_budget_table"])

        await until(has_budget)


async def test_the_virtual_key_is_good_for_the_gateway_and_nothing_else(litellm: RealLiteLLM, virtual_key: str) -> None:
    chat = {"model": GPT, "user": "key:ai", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20}
    async with aiohttp.ClientSession() as session:
        for method, path, body in (("GET", "/model/info", None), ("POST", "/v1/chat/completions", chat)):
            assert (await litellm.ask(session, method, path, virtual_key, body))[0] == 200
        for method, path, body in (
            ("POST", "/budget/info", {"budgets": ["mlpa:ai"]}),
            ("GET", "/key/info", None),
            ("POST", "/key/generate", {}),
            ("POST", "/v1/embeddings", {"model": GPT, "input": "Hi"}),
        ):
            assert (await litellm.ask(session, method, path, virtual_key, body))[0] in (401, 403)
        with pytest.raises(MasterKeyRefused):
            await litellm.admin(session, "sk-wrong").budgets(["mlpa:ai"])
        with pytest.raises(MasterKeyRefused):
            await litellm.admin(session, virtual_key).make_key("a key of a key")


async def test_a_customer_over_litellms_own_budget_is_refused_as_budget_exceeded_and_counted(
    real_system: System, litellm: RealLiteLLM
) -> None:
    async with Caller.open(real_system) as caller, aiohttp.ClientSession() as session:
        user, token = await caller.account()
        await until(lambda: litellm.customer(session, user))
        admin = litellm.admin(session)
        tiny = Budget("tiny", 10_000, "1d")
        await admin.put_budget(tiny, exists=False)
        await admin.put_customer(user, tiny.name, exists=True)
        before = metric(await caller.metrics("gateway-1"), "litellm_refusals_total", code="budget_exceeded")

        async def refused() -> Any:
            seen = await caller.chat(token, model=GPT)
            return seen if seen.status != 200 else None

        # an older LiteLLM remembers a customer's budget for a minute
        seen = await until(refused, 100)
        assert (seen.status, seen.code) == (429, "budget_exceeded")
        assert seen.json()["error"]["mlpa_code"] == 1
        assert int(seen.headers["Retry-After"]) > 0

        async def counted() -> bool:  # a page of metrics is good for a second
            return metric(await caller.metrics("gateway-1"), "litellm_refusals_total", code="budget_exceeded") > before

        await until(counted)
        await admin.put_customer(user, "mlpa:ai", exists=True)


async def test_a_litellm_that_hangs_costs_no_exchange_anything_and_is_caught_up_with(
    real_system: System, litellm: RealLiteLLM
) -> None:
    async with Caller.open(real_system) as caller, aiohttp.ClientSession() as session:
        tokens = [await caller.fxa_token(uid=uuid.uuid4().hex) for _ in range(10)]
        litellm.process.pause()
        try:
            seen = [await caller.exchange(token) for token in tokens]
            assert [each.status for each in seen] == [200] * 10
            assert max(each.seconds for each in seen) < 2
            assert metric(await caller.metrics("auth-1"), "litellm_provisioning_pending") == 10
        finally:
            litellm.process.resume()
        await until(lambda: real_system.sql("select count(*) from users where litellm_budget is null") == [(0,)], 60)
        assert await litellm.admin(session).budgets(["mlpa:ai"])


async def test_ledger_and_litellm_agree_after_mixed_requests(real_system: System, litellm: RealLiteLLM) -> None:
    """To the nano-dollar where answers came to their end; what was cut costs at least what LiteLLM counted."""
    async with Caller.open(real_system) as caller, aiohttp.ClientSession() as session:
        accounts = [await caller.account() for _ in range(10)]
        whole, cut = accounts[:8], accounts[8:]

        async def one(number: int) -> None:
            if number % 10 < 8:
                token = whole[number % 8][1]
                if number % 3:
                    seen = await caller.stream(token, model=SLOW if number % 20 == 1 else GPT)
                    assert seen.done, seen
                else:
                    plain = await caller.ask(
                        "POST",
                        f"{real_system.gateway_url}/v1/chat/completions",
                        json={"model": GPT, "messages": [{"role": "user", "content": "Hi " * number}]},
                        headers={"Authorization": f"Bearer {token}"},
                        patience=60,  # one LiteLLM, one process, and a busy machine
                    )
                    assert plain.status == 200, plain
            else:
                stream = asyncio.create_task(caller.stream(cut[number % 2][1], model=SLOW))
                await asyncio.sleep(0.5)
                stream.cancel()
                await asyncio.wait({stream})

        began = datetime.now(UTC)
        gate = asyncio.Semaphore(8)

        async def gated(number: int) -> None:
            async with gate:
                await one(number)

        async with asyncio.TaskGroup() as group:
            for number in range(REQUESTS):
                group.create_task(gated(number))
        users = [user for user, _ in accounts]

        async def settled() -> dict[str, tuple[int, int]]:
            rows = real_system.sql(
                "select user_id, sum(cost_nano)::bigint, count(*) from ledger "
                "where user_id = any(%(users)s) group by user_id",
                users=users,
            )
            found = {user: (int(cost), int(count)) for user, cost, count in rows}
            return found if sum(count for _, count in found.values()) == REQUESTS else {}

        ours = await until(settled)
        start, end = began.date(), (datetime.now(UTC) + timedelta(days=1)).date()
        admin = litellm.admin(session)

        def difference(theirs: dict[str, Decimal], user: str) -> Decimal:
            return ours[user][0] - theirs.get(user, Decimal(0)) * NANO

        async def counted() -> dict[str, Decimal]:
            theirs = await admin.spend(users, start, end)
            return theirs if all(difference(theirs, user) <= ours[user][1] for user, _ in whole) else {}

        theirs = await until(counted)
        for user, _ in whole:
            # each of ours is rounded up once, each of theirs is a double
            assert difference(theirs, user) >= -0.001, (user, ours[user], theirs[user])
        for user, _ in cut:
            assert difference(theirs, user) >= 0
