"""With everything logged that can be: no secret, credential or message is to be seen where it doesn't belong."""

from __future__ import annotations

import asyncio
import json
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from services.cli.client import ASSERTION
from tests.doubles.otlp import Collector
from tests.doubles.sentry import Sentry
from tests.support.waiting import until
from tests.system.clients import Caller, Seen
from tests.system.credentials import sign_in
from tests.system.harness import DATABASE_PASSWORD, REDIS_PASSWORD, SECRETS, System


@dataclass(slots=True)
class Traffic:
    """What was sent and must not be seen again. ``people``: names that logs and metrics must not have."""

    credentials: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    people: dict[str, str] = field(default_factory=dict)
    errors: list[Seen] = field(default_factory=list)


async def _make_traffic(caller: Caller) -> Traffic:
    """Of every kind, good and bad, each with texts that stand nowhere else."""
    system, traffic = caller.system, Traffic()
    uid = uuid.uuid4().hex
    jwt, opaque = await caller.fxa_token(uid=uid), await caller.fxa_token(uid=uid, kind="opaque")
    traffic.credentials |= {"FxA JWT": jwt.rpartition(".")[2], "opaque FxA token": opaque}
    traffic.people["FxA uid"] = uid
    token = str((await caller.exchange(jwt)).json()["access_token"])
    await caller.exchange(opaque)
    traffic.credentials["access token"] = token.rpartition(".")[2]
    device = await caller.enrolled()
    traffic.people["key id"] = device.key_id_b64
    subject = caller.assertion(device, (await caller.challenge(device)).json()["challenge"])
    traffic.credentials["assertion"] = subject
    await caller.exchange(subject, ASSERTION)
    for setting in ("MLPA_ADMIN_KEY", "MLPA_UI_ACCESS_KEY"):
        cookie = await sign_in(caller, setting)
        traffic.credentials[f"session of {setting}"] = cookie.partition("=")[2]
        await caller.ask("GET", f"{system.auth_url}/admin/users", headers={"Cookie": cookie})
    await caller.block(f"{uid}:ai")
    await caller.block(f"{uid}:ai", undo=True)
    await _chat(caller, token, traffic)
    await _mistakes(caller, token, traffic)
    return traffic


async def _chat(caller: Caller, token: str, traffic: Traffic) -> None:
    """Prompts, answers, tool arguments and LiteLLM's errors: each with its canary."""
    prompt, answer, fault = (f"canary-{name}-{uuid.uuid4().hex}" for name in ("prompt", "answer", "fault"))
    traffic.texts |= {"prompt": prompt, "answer": answer, "LiteLLM's error": fault}
    piece = {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": answer}}]}
    end = {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    events = "".join(f"data: {json.dumps(event)}\n\n" for event in (piece, end)) + "data: [DONE]\n\n"
    broken = json.dumps({"error": {"message": fault, "type": "api_error", "param": fault, "code": "500"}})
    await caller.script("slow", [("send", events)])
    assert (await caller.stream(token, model="slow")).done
    await caller.script("slow", [("send", broken)], status=500)
    traffic.errors.append(await caller.chat(token, model="slow", text=prompt))
    await caller.script("slow", [("send", f"data: {broken}\n\n")])
    traffic.errors.append(await caller.chat(token, model="slow", text=prompt))
    assert (await caller.chat(token, text=prompt)).status == 200


async def _mistakes(caller: Caller, token: str, traffic: Traffic) -> None:
    """Requests that are refused, with something secret where the fault is."""
    system = caller.system
    text = f"canary-mistake-{uuid.uuid4().hex}"
    traffic.texts["mistaken field"] = text
    chat = f"{system.gateway_url}/v1/chat/completions"
    bearer = {"Authorization": f"Bearer {token}"}
    message = [{"role": "user", "content": text}]
    for body in (
        {"model": text, "messages": message},
        {"model": "double", "messages": [{"role": text, "content": text}]},
        {"model": "double", "messages": message, "temperature": text},
        {"model": "double", "messages": message, "tools": text},
        {"model": "double", "messages": [{"role": "user", "content": [{"type": text, text: text}]}]},
    ):
        traffic.errors.append(await caller.ask("POST", chat, json=body, headers=bearer))
    traffic.errors.append(await caller.ask("POST", chat, data=f'{{"model": "{text}', headers=bearer))
    traffic.errors.append(await caller.ask("POST", chat, headers={"Authorization": f"Bearer {text}"}))
    traffic.errors.append(await caller.ask("GET", f"{system.gateway_url}/{text}?{text}={text}", headers=bearer))
    traffic.errors.append(await caller.exchange(text))
    traffic.errors.append(await caller.exchange(text, ASSERTION))
    traffic.errors.append(await caller.exchange(text, text, text, audience=text))
    traffic.errors.append(await caller.ask("POST", f"{system.auth_url}/verify/attest", json={text: text}))
    traffic.errors.append(await caller.admin("GET", "/user", key=text))
    traffic.errors.append(await caller.admin("POST", f"/user/{'e' * 32}%3Aai/budget", json={"service_type": text}))


def _places(system: System) -> Iterator[tuple[str, str]]:
    """``(where, all its text)``: logs, Redis with keys and values, PostgreSQL's rows."""
    for name, text in system.logs().items():
        yield f"log of {name}", text
    with system.valkey.client() as redis:
        yield "Redis", "\n".join(_redis(redis))
    tables = system.sql("select tablename from pg_tables where schemaname = 'public'")
    for (table,) in tables:
        rows = system.sql(f'select t::text from "{table}" t')
        yield f"PostgreSQL, {table}", "\n".join(text for (text,) in rows)


def _redis(redis: Any) -> Iterator[str]:
    for key in redis.scan_iter(count=1000):
        kind = redis.type(key).decode()
        match kind:
            case "string":
                value = redis.get(key)
            case "hash":
                value = redis.hgetall(key)
            case "zset":
                value = redis.zrange(key, 0, -1)
            case "set":
                value = redis.smembers(key)
            case _:
                value = redis.lrange(key, 0, -1)
        yield f"{key!r} {value!r}"


def _settings(system: System) -> str:
    program = system.program("settings")
    done = subprocess.run(program.argv, env=program.env, cwd=program.cwd, check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


def _found(canaries: dict[str, str], places: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{name} in {where}" for where, text in places for name, canary in canaries.items() if canary in text]


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with Collector.open() as double:
        yield double


@pytest.fixture
async def sentry() -> AsyncIterator[Sentry]:
    async with Sentry.open() as double:
        yield double


@pytest.fixture
async def teller(tmp_path: Path, template: Path, collector: Collector, sentry: Sentry) -> AsyncIterator[Caller]:
    """Of a system that also sends traces and error reports."""
    tells = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100", "SENTRY_DSN": sentry.dsn}
    whole = System(tmp_path / "telling", template, environment=tells)
    try:
        await whole.start()
        async with Caller.open(whole) as one:
            yield one
    finally:
        whole.stop()


async def _traces(collector: Collector, routes: set[str]) -> list[tuple[str, str]]:
    """Every batch of spans; once there is a span of each route."""
    await until(lambda: routes <= {span.name for span in collector.spans})
    assert collector.services == {"mlpa-auth", "mlpa-gateway"}
    return [("traces", body.decode(errors="replace")) for body in collector.received]


async def test_no_secret_is_seen_where_it_does_not_belong(teller: Caller, collector: Collector, sentry: Sentry) -> None:
    system, traffic = teller.system, await _make_traffic(teller)
    traces = await _traces(collector, {"POST /v1/chat/completions", "POST /token", "POST /user/{user_id}/block"})
    reports = [("error report", body.decode(errors="replace")) for body in sentry.envelopes]
    fixed = {**SECRETS, "database password": DATABASE_PASSWORD, "Redis password": REDIS_PASSWORD}
    services = [("metrics of auth", system.auth_url), ("metrics of the gateway", system.gateway_url)]
    metrics = [(name, (await teller.ask("GET", f"{url}/metrics")).body.decode()) for name, url in services]
    answers = [(f"error body {seen}", seen.body.decode() + str(seen.headers)) for seen in traffic.errors]
    assert all(seen.status >= 400 for seen in traffic.errors)
    said = [("mlpa settings", await asyncio.to_thread(_settings, system))]
    stored = list(_places(system))
    everywhere = [*metrics, *answers, *said, *traces, *reports, *stored]
    found = _found({**fixed, **traffic.credentials, **traffic.texts}, everywhere)
    found += _found(
        traffic.people,
        [*metrics, *answers, *said, *traces, *reports, *(place for place in stored if place[0].startswith("log of"))],
    )
    assert not found, "\n".join(found)


async def test_the_search_finds_what_is_there(system: System, caller: Caller) -> None:
    """It reads every log, all of Redis and all tables: what does belong there is found."""
    request_id = uuid.uuid4().hex
    user_id, token = await caller.account()
    assert (await caller.chat(token, request_id=request_id)).status == 200
    await _settled(system, request_id)
    found = _found({"request": request_id, "user": user_id.partition(":")[0]}, _places(system))
    assert {"request in log of gateway-1", "request in PostgreSQL, ledger", "user in Redis"} <= set(found)


async def _settled(system: System, request_id: str) -> None:
    for _ in range(100):
        if system.sql("select 1 from ledger where request_id = %(id)s", id=request_id):
            return
        await asyncio.sleep(0.05)
