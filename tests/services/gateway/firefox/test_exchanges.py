"""What a gateway remembers of exchanges: as long as it may, as many as it may, each once."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from services.gateway.errors import Forbidden, InvalidToken, MaxUsersReached, RateLimited, UserBlocked
from services.gateway.firefox.exchanges import Exchanges
from shared.domain.identity import Credential
from shared.domain.tokens import BLOCKED, CLIENT_HEADER
from shared.errors import DependencyUnavailable
from shared.service import proxies
from shared.service.fetch import NoAnswer
from shared.telemetry.metrics import Registry
from tests.support.clock import Clock
from tests.support.serving import serve
from tests.support.waiting import until


@dataclass
class AuthDouble:
    """A stand-in for auth's exchange. An access token is that of the credential, with a number."""

    status: int = 200
    body: Any = None
    life: int = 300
    headers: dict[str, str] = field(default_factory=dict)
    gate: asyncio.Event | None = None
    asked: Counter[str] = field(default_factory=Counter)
    clients: list[str | None] = field(default_factory=list)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/token", self._token)
        return app

    async def _token(self, request: web.Request) -> web.Response:
        subject = str((await request.post())["subject_token"])
        self.asked[subject] += 1
        self.clients.append(request.headers.get(CLIENT_HEADER))
        if self.gate is not None:
            await self.gate.wait()
        granted = {"access_token": f"{subject}-{self.asked[subject]}", "expires_in": self.life}
        body = granted if self.body is None else self.body
        return web.json_response(body, status=self.status, headers=self.headers)


@dataclass
class Parts:
    auth: AuthDouble
    exchanges: Exchanges
    clock: Clock

    async def ask(self, token: str = "t", service_type: str = "ai", **more: Any) -> str:
        return await self.exchanges.remembered(Credential.FXA, token, service_type, "192.0.2.1", **more)


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[Parts]:
    auth, clock = AuthDouble(), Clock()
    async with serve(auth.app()) as url, aiohttp.ClientSession() as session:
        made = Exchanges(session, Registry(), auth_url=f"{url}/", key=b"key", clock=clock, **options)
        yield Parts(auth, made, clock)
        await made.close()


@pytest.fixture
async def parts() -> AsyncIterator[Parts]:
    async with opened() as parts:
        yield parts


@pytest.mark.parametrize(("life", "kept"), [(300, 240), (3600, 240), (100, 70), (31, 1)])
async def test_a_token_is_remembered_for_four_minutes_and_not_to_its_end(parts: Parts, life: int, kept: int) -> None:
    parts.auth.life = life
    assert await parts.ask() == "t-1"
    parts.clock.now += kept - 0.5
    assert await parts.ask() == "t-1"
    parts.clock.now += 1
    assert await parts.ask() == "t-2"


@pytest.mark.parametrize("life", [30, 10, 0, -5])
async def test_a_token_near_its_end_is_used_and_not_remembered(parts: Parts, life: int) -> None:
    parts.auth.life = life
    assert [await parts.ask() for _ in range(2)] == ["t-1", "t-2"]


async def test_concurrent_requests_share_an_exchange_and_leave_nothing_behind(parts: Parts) -> None:
    parts.auth.gate = asyncio.Event()
    asked = [asyncio.create_task(parts.ask()) for _ in range(50)]
    other = asyncio.create_task(parts.ask(service_type="memories"))
    await until(lambda: sum(parts.auth.asked.values()) == 2)
    asked += [asyncio.create_task(parts.ask()) for _ in range(50)]  # while the exchange is under way
    asked[0].cancel()
    await asyncio.sleep(0)
    parts.auth.gate.set()
    assert {await one for one in asked[1:]} <= {"t-1", "t-2"}
    await other
    assert parts.auth.asked["t"] == 2
    assert parts.exchanges._asked == {}, "no credential is kept"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (503, {"error": "temporarily_unavailable"}),
        (429, {"error": "slow_down"}),
        (400, "no error"),
        (400, {"error": "x"}),
    ],
)
async def test_an_answer_that_says_nothing_about_the_key_is_none(parts: Parts, status: int, body: Any) -> None:
    parts.auth.status, parts.auth.body = status, body
    with pytest.raises(NoAnswer):
        await parts.exchanges.known()


@pytest.mark.parametrize(
    ("status", "error", "description", "kind"),
    [
        (400, "invalid_request", "", InvalidToken),
        (400, "invalid_scope", "", Forbidden),
        (403, "access_denied", "", Forbidden),
        (403, "access_denied", BLOCKED, UserBlocked),
        (403, "max_users_reached", "", MaxUsersReached),
    ],
)
async def test_a_refusal_is_remembered_for_five_seconds(
    parts: Parts, status: int, error: str, description: str, kind: type[Exception]
) -> None:
    parts.auth.status, parts.auth.body = status, {"error": error, "error_description": description}
    for asked, passed in ((1, 0.0), (1, 4.9), (2, 0.2)):
        parts.clock.now += passed
        with pytest.raises(kind) as caught:
            await parts.ask()
        assert type(caught.value) is kind
        assert parts.auth.asked["t"] == asked
    parts.auth.status, parts.auth.body = 200, None
    parts.clock.now += 5
    assert await parts.ask() == "t-3"


async def test_a_limit_is_told_with_its_time_and_not_remembered(parts: Parts) -> None:
    parts.auth.status, parts.auth.body = 429, {"error": "slow_down"}
    parts.auth.headers = {"Retry-After": "17"}
    for _ in range(2):
        with pytest.raises(RateLimited) as caught:
            await parts.ask()
        assert caught.value.headers["Retry-After"] == "17"
    assert parts.auth.asked["t"] == 2


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (503, {"error": "temporarily_unavailable"}),
        (500, {"error": "server_error"}),
        (404, {"error": "not_found"}),
        (401, {"error": "invalid_request"}),
        (400, {"error": "unsupported_grant_type"}),
        (403, {"error": "forbidden"}),
        (400, ["invalid_request"]),
        (200, {"access_token": 7, "expires_in": 300}),
        (200, {"expires_in": 300}),
        (302, {}),
    ],
)
async def test_anything_else_says_nothing_about_the_credential(parts: Parts, status: int, body: Any) -> None:
    parts.auth.status, parts.auth.body = status, body
    for _ in range(2):
        with pytest.raises(DependencyUnavailable) as caught:
            await parts.ask()
        assert int(caught.value.headers["Retry-After"]) >= 1
    assert parts.auth.asked["t"] == 2
    parts.auth.status, parts.auth.body = 200, None
    assert await parts.ask() == "t-3"


async def test_a_process_remembers_so_many_and_refusals_push_out_nothing() -> None:
    async with opened(most=3) as parts:
        await remembers_three(parts)


async def remembers_three(parts: Parts) -> None:
    for token in "abc":
        await parts.ask(token)
    parts.auth.status, parts.auth.body = 400, {"error": "invalid_request"}
    for token in "uvwxyz":
        with pytest.raises(InvalidToken):
            await parts.ask(token)
    parts.auth.status, parts.auth.body = 200, None
    assert [await parts.ask(token) for token in "abc"] == ["a-1", "b-1", "c-1"]
    await parts.ask("d")
    assert await parts.ask("c") == "c-1"
    assert await parts.ask("a") == "a-2"


async def test_one_that_is_no_longer_good_is_exchanged_again(parts: Parts) -> None:
    assert await parts.ask() == "t-1"
    assert await parts.ask(renew=True) == "t-2"
    assert await parts.ask() == "t-2"


async def test_what_is_good_for_one_request_is_not_remembered(parts: Parts) -> None:
    for number in (1, 2):
        got = await parts.exchanges.once(Credential.APP_ATTEST_REQUEST, "t", "s2s", proxies.UNKNOWN)
        assert got == f"t-{number}"
    assert parts.auth.clients == [None, None], "an unknown address is not passed on"
    await parts.ask()
    assert parts.auth.clients[-1] == "192.0.2.1"


async def test_neither_credentials_nor_tokens_are_logged(parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        await parts.ask("a-credential-of-somebody")
        parts.auth.status = 503
        with pytest.raises(DependencyUnavailable):
            await parts.ask("another-credential")
    assert "credential-of" not in caplog.text
    assert "another-credential" not in caplog.text
