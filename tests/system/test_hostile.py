"""No input, however malformed: no 5xx, no hang, no growth, and an error body in the documented shape."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import resource
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from services.cli.client import ACCESS_TOKEN, GRANT_TYPE
from tests.support.exposition import metric, series
from tests.support.waiting import until
from tests.system.clients import Caller
from tests.system.conftest import FULL, TABLES
from tests.system.harness import SECRETS, System
from tests.system.hostile import Attempt, Generator, Target

COUNT = 50_000 if FULL else 300
INVENTED = 10_000 if FULL else 100
AT_ONCE = 20
#: Seconds until an answer or the end of the connection.
PATIENCE = 3.0
#: What a process may hold more than before, in KiB: buffers and caches that fill once.
GROWTH = 60_000

#: aiohttp answers in whatever version it was asked in.
_STATUS = re.compile(rb"HTTP/\d\.\d (\d{3}) ")


def _targets(token: str, fxa_token: str) -> list[Target]:
    bearer = ("Authorization", f"Bearer {token}")
    admin = ("Authorization", f"Bearer {SECRETS['MLPA_ADMIN_KEY']}")
    json_type = ("Content-Type", "application/json")
    form_type = ("Content-Type", "application/x-www-form-urlencoded")
    chat = {
        "model": "double",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": False,
        "max_tokens": 5,
        "tools": [],
        "response_format": {"type": "text"},
    }
    exchange = {
        "grant_type": GRANT_TYPE,
        "subject_token": fxa_token,
        "subject_token_type": ACCESS_TOKEN,
        "scope": "ai",
        "audience": "mlpa-gateway",
    }
    device = {"key_id_b64": "A" * 43 + "=", "challenge_b64": "AAAA", "attestation_obj_b64": "AAAA", "bundle_id": "x"}
    user = f"/user/{'d' * 32}%3Aai"
    return [
        Target("gateway-1", "POST", "/v1/chat/completions", (bearer, json_type), json.dumps(chat).encode()),
        Target("gateway-1", "GET", "/v1/models", (bearer,)),
        Target("gateway-1", "GET", "/v1/budget", (bearer,)),
        Target("gateway-1", "GET", "/health/readiness"),
        Target("gateway-1", "GET", "/metrics"),
        Target("gateway-1", "GET", "/api/docs"),
        Target("auth-1", "POST", "/token", (form_type,), urlencode(exchange).encode()),
        Target("auth-1", "POST", "/revoke", (form_type,), b"token=abc&token_type_hint=x"),
        Target("auth-1", "POST", "/verify/attest", (json_type,), json.dumps(device).encode()),
        Target("auth-1", "GET", "/verify/challenge?key_id_b64=" + "A" * 43),
        Target("auth-1", "GET", "/.well-known/jwks.json"),
        Target("auth-1", "GET", "/user?limit=5", (admin,)),
        Target("auth-1", "GET", user, (admin,)),
        Target("auth-1", "GET", f"{user}/ledger", (admin,)),
        Target("auth-1", "POST", f"{user}/block", (admin, json_type), b'{"reason":"x"}'),
        Target("auth-1", "POST", f"{user}/budget", (admin, json_type), b'{"service_type":"ai"}'),
        Target("auth-1", "POST", "/admin/sign-in", (form_type,), b"csrf=a&key=b"),
        Target("auth-1", "GET", "/admin/users"),
        Target("auth-1", "GET", "/openapi.json"),
    ]


async def _send(system: System, attempt: Attempt, patience: float = PATIENCE) -> bytes | None:
    """All that came back until the connection ended; None when nothing did.

    A server may wait a while for the rest of a body that it has refused, so that its answer is not lost to a reset.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", system.listens[attempt.service])
    answer = b""
    try:
        async with asyncio.timeout(patience):
            writer.write(attempt.data)
            if not attempt.complete:
                writer.write_eof()
            while data := await reader.read(65536):
                answer += data
    except TimeoutError:
        return answer or None
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    return answer


def _complaints(attempt: Attempt, answer: bytes | None) -> Iterator[str]:
    """What is wrong with an answer."""
    if answer is None:
        yield "hangs"
        return
    statuses = [int(status) for status in _STATUS.findall(answer)]
    if attempt.complete and not statuses and answer:
        yield f"not HTTP: {answer[:80]!r}"
    if any(status >= 500 for status in statuses):
        yield f"{statuses}"
    if re.search(rb"(?im)^x-injected", answer):
        yield "an injected header"
    if attempt.what.startswith(("smuggled CL.TE", "smuggled TE.", "smuggled CL.CL")) and b"smuggled" in answer:
        yield "a smuggled request was answered"
    head, _, body = answer.partition(b"\r\n\r\n")
    if statuses and statuses[0] >= 400 and body and b" /admin" not in attempt.data[:200]:
        yield from _shape(attempt.service, statuses[0], head, body)


def _shape(service: str, status: int, head: bytes, body: bytes) -> Iterator[str]:
    try:
        error = json.loads(body)
        good = (
            {"error", "error_description"} <= error.keys()
            if service == "auth-1"
            else {"message", "type", "param", "code", "mlpa_code"} == error["error"].keys()
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        good = False
    if not good:
        yield f"{status} in another shape: {body[:120]!r}"
    if b"x-request-id" not in head.lower():
        yield f"{status} without X-Request-ID"


class _Size:
    """What a process holds."""

    def __init__(self, system: System, name: str) -> None:
        self._folder = Path(f"/proc/{system.parts[name].process.pid}")

    def memory(self) -> int:
        """KiB."""
        match = re.search(r"VmRSS:\s+(\d+)", (self._folder / "status").read_text())
        assert match
        return int(match[1])

    def descriptors(self) -> int:
        return len(list((self._folder / "fd").iterdir()))


async def _label_values(caller: Caller, name: str) -> set[str]:
    """The values of all labels of a service's metrics."""
    return set(re.findall(r'\w+="[^"]*"', " ".join(series(await caller.metrics(name)))))


async def _attack(system: System, generator: Generator, count: int) -> list[str]:
    complaints: list[str] = []
    statuses: Counter[str] = Counter()
    left = iter(range(count))

    async def some() -> None:
        for _ in left:
            attempt = generator.next()
            answer = await _send(system, attempt)
            first = _STATUS.search(answer or b"")
            statuses[first[1].decode() if first else "closed"] += 1
            complaints.extend(f"{attempt.service} {attempt.what}: {said}" for said in _complaints(attempt, answer))

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    answered = ", ".join(f"{status}: {number}" for status, number in sorted(statuses.items()))
    TABLES.append((f"hostile input, {count} requests", [answered]))
    return complaints


async def test_hostile_requests_are_refused_and_leave_nothing_behind(system: System, caller: Caller) -> None:
    _, token = await caller.account()
    targets = _targets(token, await caller.fxa_token())
    tokens = [token, SECRETS["MLPA_ADMIN_KEY"], await caller.fxa_token()]
    services = ("auth-1", "gateway-1")
    complaints = await _attack(system, Generator(1, targets, tokens), 300)
    sizes = {name: _Size(system, name) for name in services}
    before = {name: (size.memory(), size.descriptors()) for name, size in sizes.items()}
    known = {name: await _label_values(caller, name) for name in services}
    complaints += await _attack(system, Generator(2, targets, tokens), COUNT)
    assert not complaints, "\n".join(f"{number} x {said}" for said, number in Counter(complaints).most_common(40))
    unhandled = [line[:1500] for name in services for line in system.logs()[name].splitlines() if "nhandled e" in line]
    assert not unhandled, "\n".join(unhandled[:3])
    for name, size in sizes.items():
        memory, descriptors = before[name]
        assert size.memory() - memory < GROWTH
        assert size.descriptors() <= descriptors + 10
        assert await _label_values(caller, name) - known[name] == set()


@pytest.mark.parametrize("service", ["auth-1", "gateway-1"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"Content-Encoding: gzip\r\nContent-Length: 4", 415),
        (b"Expect: \xf0\x9f\x98\x80\r\nContent-Length: 4", 400),
        (b"Expect: nothing\r\nContent-Length: 4", 400),
        (b"Content-Length: 999999999999", 413),
    ],
)
async def test_a_broken_body_is_refused_at_once(
    system: System, caller: Caller, service: str, headers: bytes, status: int
) -> None:
    _, token = await caller.account()
    path, kind = (b"/v1/chat/completions", b"json") if service == "gateway-1" else (b"/token", b"x-www-form-urlencoded")
    head = b"POST %b HTTP/1.1\r\nHost: mlpa\r\nConnection: close\r\nContent-Type: application/%b\r\n" % (path, kind)
    bearer = f"Authorization: Bearer {token}\r\n".encode()
    attempt = Attempt(service, "body", head + bearer + headers + b"\r\n\r\nabcd")
    answer = await _send(system, attempt, 1)
    assert list(_complaints(attempt, answer)) == []
    assert answer
    assert answer.startswith(b"HTTP/1.1 %d " % status)


async def test_invented_names_make_no_metric_series(system: System, caller: Caller) -> None:
    chat = f"{system.gateway_url}/v1/chat/completions"

    async def ask(token: str, number: int) -> None:
        bearer = {"Authorization": f"Bearer {token}"}
        name = f"invented-{uuid.uuid4().hex[:8]}"
        body = {"model": "double", "messages": [{"role": "user", "content": "Hi"}]}
        if number % 5 == 0:
            await caller.ask("POST", chat, json=body, headers={**bearer, "purpose": name})
        await caller.ask("POST", chat, json={**body, "model": name}, headers=bearer)
        await caller.ask("GET", f"{system.gateway_url}/{name}", headers=bearer)
        await caller.ask("PROPFIND", f"{system.auth_url}/{name}")
        await caller.exchange(token, name, name)

    async def ask_at_once() -> None:
        tokens = [(await caller.account())[1] for _ in range(AT_ONCE // 5)]  # who has ten requests refused has to wait
        await asyncio.gather(*(ask(tokens[number % len(tokens)], number) for number in range(AT_ONCE)))

    await ask_at_once()
    before = {name: await caller.metrics(name) for name in ("auth-1", "gateway-1")}
    for _ in range(INVENTED // AT_ONCE):
        await ask_at_once()

    async def newer(name: str) -> bytes | None:  # a page is kept for a second
        return page if (page := await caller.metrics(name)) != before[name] else None

    pages = {name: await until(functools.partial(newer, name)) for name in before}
    assert metric(pages["gateway-1"], "chat_request_rejections_total", reason="invalid_model") > INVENTED
    for name, page in pages.items():
        grown = series(page) - series(before[name])
        assert "invented" not in str(grown)
        assert len(grown) < INVENTED / 4  # an outcome that was not met before makes some


async def test_a_body_over_the_limit_is_413_with_and_without_its_length(system: System, caller: Caller) -> None:
    _, token = await caller.account()
    bearer = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    form = {"Content-Type": "application/x-www-form-urlencoded"}

    async def endless(size: int) -> AsyncIterator[bytes]:
        for _ in range(size // 65536 + 1):
            yield b"a" * 65536

    for url, headers, limit in (
        (f"{system.gateway_url}/v1/chat/completions", bearer, 3 * 1024 * 1024),
        (f"{system.auth_url}/token", form, 64 * 1024),
        (f"{system.auth_url}/verify/attest", {"Content-Type": "application/json"}, 64 * 1024),
    ):
        with_length = await caller.ask("POST", url, data=b"a" * (limit + 1), headers=headers)
        without = await caller.ask("POST", url, data=endless(limit + 1), headers=headers)
        assert (with_length.status, with_length.code) == (413, "request_too_large"), url
        assert (without.status, without.code) == (413, "request_too_large"), (url, without)


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """For this process, which holds the other ends."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_slow_clients_are_in_nobodys_way(system: System, caller: Caller, many_descriptors: None) -> None:
    """Connections that trickle their headers or their body cost a descriptor each, and nothing else."""
    _, token = await caller.account()
    size = _Size(system, "gateway-1")
    before = size.descriptors()
    writers = []
    for number in range(1200):  # more than the descriptors that a process has by default
        _, writer = await asyncio.open_connection("127.0.0.1", system.listens["gateway-1"])
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: mlpa\r\n")
        if number % 2:
            writer.write(f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\n".encode())
            writer.write(b"Content-Length: 1000\r\n\r\n{")
        writers.append(writer)
    for _ in range(3):
        for writer in writers:
            writer.write(b" " if writer is writers[-1] else b"X")
        seen = await caller.chat(token)
        assert seen.status == 200
        assert seen.seconds < 2
    for writer in writers:
        writer.transport.abort()
    for _ in range(100):
        if size.descriptors() <= before + 10:
            break
        await asyncio.sleep(0.05)
    assert size.descriptors() <= before + 10
