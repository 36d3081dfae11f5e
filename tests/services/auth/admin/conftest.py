"""Auth with admin keys, a client of its API, and a person at its console, with a browser's cookies."""

from __future__ import annotations

import hashlib
import html
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import psycopg2
import pytest
from yarl import URL

from services.auth.audit.refusals import REFUSALS
from tests.services.auth.conftest import Auth, StartAuth

ADMIN, VIEWER, NAMED = "the-key-of-the-admin", "the-key-of-a-viewer", "key-of-jane"
ADMIN_SETTINGS = {
    "mlpa_admin_key": ADMIN,
    "mlpa_ui_access_key": VIEWER,
    "mlpa_admin_keys": f"jane:admin:{hashlib.sha256(NAMED.encode()).hexdigest()}",
    "gateway_url": "http://127.0.0.1:9",
}
UID = "00112233445566778899aabbccddeeff"
USER = f"{UID}:ai"


@pytest.fixture
async def admin_auth(start_auth: StartAuth) -> Auth:
    return await start_auth(**ADMIN_SETTINGS)


def bearer(key: str = ADMIN) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


class Rows:
    """The database, for rows that no API makes or shows."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg2.connect(url)
        self._connection.autocommit = True

    def run(self, sql: str, *params: Any) -> list[Any]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, params)
            return cursor.fetchall() if cursor.description else []

    def user(self, user_id: str = USER, tier: str | None = None) -> None:
        """A user as the exchange would make it."""
        identity, _, service_type = user_id.rpartition(":")
        self.run(
            "insert into users (user_id, identity, service_type, budget_tier) values (%s, %s, %s, %s)",
            user_id,
            identity,
            service_type,
            tier or service_type,
        )
        self.run(
            "insert into capacity as c values (%s, 1) on conflict (service_type) do update set users = c.users + 1",
            service_type,
        )

    def request(self, name: str, user_id: str = USER, *, cost: int = 1000, ago: str = "1 second", **more: Any) -> None:
        """A row of the ledger."""
        self.run(
            "insert into ledger values (%s, %s, %s, %s, %s, 'chat', 10, 20, %s, 86400, "
            "floor(extract(epoch from now() - %s::interval) / 86400), %s, now() - %s::interval, now())",
            name,
            more.get("request_id", f"r-{name}"),
            user_id,
            user_id.rpartition(":")[2],
            more.get("model", "gpt"),
            cost,
            ago,
            more.get("outcome", "success"),
            ago,
        )

    def device(self, key_id: str) -> None:
        self.run("insert into devices (key_id, public_key) values (%s, %s)", key_id, b"\x04")

    def audit(self) -> list[tuple[str, str, str, Any, Any]]:
        return self.run('select actor, action, subject, old, "new" from audit_log order by id')

    async def refusals(self, auth: Auth) -> dict[tuple[str, str, str, str], Counter[str]]:
        """What was refused, by actor, action, subject and source, once auth has written all of it."""
        await auth.apps.main[REFUSALS].write(everything=True)
        found: dict[tuple[str, str, str, str], Counter[str]] = defaultdict(Counter)
        for actor, action, subject, source, new in self.run(
            'select actor, action, subject, source, "new" from audit_log '
            "where action in ('admin_key.refused', 'forbidden') order by id"
        ):
            found[actor, action, subject, source].update(new)
        return dict(found)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
async def rows(postgres_url: str) -> AsyncIterator[Rows]:
    rows = Rows(postgres_url)
    yield rows
    rows.close()


class Page:
    def __init__(self, status: int, text: str, headers: Any, url: str) -> None:
        self.status, self.text, self.headers, self.url = status, text, headers, url

    @property
    def words(self) -> str:
        """What a reader sees, in one line."""
        return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", self.text).split()))

    @property
    def csrf(self) -> str:
        found = re.search(r'name="csrf" value="([^"]+)"', self.text)
        assert found, self.text
        return found[1]


class Person:
    """Somebody at a browser without JavaScript."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url, self.session = url, session

    async def get(self, path: str, *, follow: bool = True) -> Page:
        return await self._ask("GET", path, follow, None)

    async def post(self, path: str, *, follow: bool = True, **fields: str) -> Page:
        return await self._ask("POST", path, follow, fields)

    async def submit(self, page: Page, path: str, *, follow: bool = True, **fields: str) -> Page:
        """Post a form of a page."""
        return await self.post(path, follow=follow, csrf=page.csrf, **fields)

    async def sign_in(self, key: str = ADMIN) -> Page:
        return await self.submit(await self.get("/admin/sign-in"), "/admin/sign-in", key=key)

    async def _ask(self, method: str, path: str, follow: bool, data: Any) -> Page:
        async with self.session.request(
            method,
            URL(self.url + path, encoded=True),
            data=data,
            allow_redirects=follow,
            headers={"Accept": "text/html", "Sec-Fetch-Site": "same-origin"},
        ) as response:
            return Page(response.status, await response.text(), response.headers, response.url.raw_path_qs)


class People:
    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def come(self, auth: Auth) -> Person:
        session = aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True), requote_redirect_url=False)
        return Person(auth.url, await self._stack.enter_async_context(session))

    async def signed_in(self, auth: Auth) -> Person:
        """Somebody who has signed in with an admin's key."""
        person = await self.come(auth)
        assert (await person.sign_in()).status == 200
        return person


@pytest.fixture
async def people() -> AsyncIterator[People]:
    async with AsyncExitStack() as stack:
        yield People(stack)


@pytest.fixture
async def person(admin_auth: Auth, people: People) -> Person:
    return await people.signed_in(admin_auth)


@pytest.fixture
async def viewer(admin_auth: Auth, people: People) -> Person:
    person = await people.come(admin_auth)
    await person.sign_in(VIEWER)
    return person
