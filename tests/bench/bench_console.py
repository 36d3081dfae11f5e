"""The cost of the console's pages with 200,000 users and 2 million requests, against an empty database.

MLPA_BENCH_SCALE=0.1 takes a tenth of the rows, MLPA_BENCH_USERS=10000000 as many users (an hour, 9 GB).
No page should take longer than 300 ms.
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import aiohttp
from aiohttp import web
from yarl import URL

from services.auth.app import build_app
from services.auth.settings import AuthSettings
from shared.service.serve import listen
from tests.bench.console_data import seed
from tests.bench.figures import ROUNDS, Row, beside, turns
from tests.bench.stores import stores

KEY = "the-key-of-the-bench"
SCALE = float(os.environ.get("MLPA_BENCH_SCALE", "1"))
USERS, REQUESTS = int(os.environ.get("MLPA_BENCH_USERS", 200_000 * SCALE)), int(2_000_000 * SCALE)
WARM_UP, READS = 3, 20
#: Seconds: an empty database is filled with so many users first.
LONGEST = 480 + USERS / 2_000
GOAL = "at most 3x, and 300 ms"

#: The address of a console, and a session that is signed in.
Console = tuple[str, aiohttp.ClientSession]


async def run() -> list[Row]:
    """Rows of (page, figure)."""
    with stores() as (folder, valkey, postgres, bare):
        filled = postgres.create_database("full", template="bench")
        await asyncio.to_thread(seed, filled, users=USERS, rows=REQUESTS)
        async with _console(bare, valkey.url, folder) as empty, _console(filled, valkey.url, folder) as full:
            await _summed_up(*full)
            return await _compare(empty, full)


async def _compare(empty: Console, full: Console) -> list[Row]:
    """Each page is read in turns, within a round too."""
    rows = [("rows", f"{USERS:,} users, {REQUESTS:,} requests, beside none")]
    for name, (path, bare) in (await _paths(*full)).items():
        works = partial(_seconds, full, path), partial(_seconds, empty, bare)
        await turns(*works, rounds=WARM_UP)
        rounds = [map(_p95, await turns(*works, rounds=READS)) for _ in range(ROUNDS)]
        full_p95, empty_p95 = zip(*rounds, strict=True)
        rows.append((f"{name}, p95", beside(full_p95, empty_p95, "ms", 1e3, goal=GOAL)))
    return rows


async def _seconds(console: Console, path: str) -> float:
    started = time.perf_counter()
    await _get(*console, path)
    return time.perf_counter() - started


def _p95(times: list[float]) -> float:
    return statistics.quantiles(times, n=20, method="inclusive")[-1]


@asynccontextmanager
async def _console(database: str, redis: str, folder: Path) -> AsyncIterator[Console]:
    """A running auth, and a session that is signed in."""
    settings = AuthSettings.from_environment(
        _env_file=None,
        mlpa_debug=True,
        database_url=database,
        redis_url=redis,
        mlpa_signing_keys_dir=folder / "keys",
        mlpa_admin_key=KEY,
        litellm_provision_users=False,
        gateway_url="http://127.0.0.1:9",
        fxa_base_url="http://127.0.0.1:9/v1",
    )
    async with AsyncExitStack() as stack:
        apps = build_app(settings)
        runner = web.AppRunner(apps.main, handler_cancellation=True, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        sock = listen("127.0.0.1", 0)
        await apps.make_site(runner, sock).start()
        base = f"http://127.0.0.1:{sock.getsockname()[1]}"
        session = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)))
        token = re.search(r'name="csrf" value="([^"]+)"', await _get(base, session, "/admin/sign-in"))
        assert token
        async with session.post(f"{base}/admin/sign-in", data={"csrf": token[1], "key": KEY}) as response:
            assert response.status == 200
        yield base, session


async def _get(base: str, session: aiohttp.ClientSession, path: str) -> str:
    async with session.get(URL(base + path, encoded=True), headers={"Accept": "text/html"}) as response:
        text = await response.text()
        assert response.status == 200, (path, response.status, text[:500])
        return text


async def _summed_up(base: str, session: aiohttp.ClientSession) -> None:
    """Wait until the background has gone through the ledger, and knows who is near the limit."""
    async with asyncio.timeout(120):
        while True:
            text = await _get(base, session, "/admin?span=30d")
            if "No requests in this time" not in text and "Not known yet" not in text:
                return
            await asyncio.sleep(0.5)


async def _paths(base: str, session: aiohttp.ClientSession) -> dict[str, tuple[str, str]]:
    """Pages, and the pages asked for in an empty database: it has no user, so there it's the empty list."""
    alike = {
        "overview": "/admin",
        "overview, 30 days": "/admin?span=30d",
        "users": "/admin/users",
        "users, newest first": "/admin/users?sort=created&order=desc",
        "users, search": "/admin/users?q=ab",
        "users, blocked": "/admin/users?list=blocked",
        "users, of a tier": "/admin/users?list=tier:s2s",
        "users, Android installs": "/admin/users?list=installs",
        "users, seen last": "/admin/users?sort=seen&order=desc",
        "users, not seen for longest": "/admin/users?sort=seen&order=asc",
        "users, by spend": "/admin/users?list=spend",
        "requests": "/admin/requests",
        "requests, of a rare model": "/admin/requests?model=none",
        "costs, 7 days": "/admin/costs",
        "models": "/admin/models",
        "devices": "/admin/devices",
        "audit log": "/admin/audit",
        "service types": "/admin/service-types",
    }
    paths = {name: (path, path) for name, path in alike.items()}
    busiest = re.search(r'href="(/admin/users/[^"?]+)"', await _get(base, session, "/admin/users?list=spend"))
    assert busiest, "nobody has spent anything"
    paths["the busiest user"] = (busiest[1], "/admin/users")
    link = "/admin/users"
    for _ in range(20):
        found = re.search(r'rel="next" href="([^"]+)"', await _get(base, session, link))
        assert found
        link = found[1].replace("&amp;", "&")
    paths["users, page 21"] = (link, "/admin/users")
    return paths
