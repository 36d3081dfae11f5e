"""Clients of a running system: answers and their times, never an exception."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Self
from urllib.parse import quote

import aiohttp
from yarl import URL

from services.cli.client import ACCESS_TOKEN, ASSERTION, GRANT_TYPE, subject_token
from services.local.device import Device
from services.local.fxa import EventOrder, StandIn
from tests.system.harness import BUNDLE_ID, SECRETS, TEAM, System, fxa_keys

Event = Literal["password-change", "delete-user"]

#: Longer than any documented timeout.
PATIENCE = 10.0


@dataclass(slots=True)
class Seen:
    """An answer; ``status`` is 0 when there was none, and ``fault`` then says why."""

    status: int
    seconds: float
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    fault: str = ""

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error code of either service's envelope; empty for other bodies."""
        try:
            error = self.json()["error"]
        except (ValueError, KeyError, TypeError):
            return ""
        return str(error["code"] if isinstance(error, dict) else error)

    def __str__(self) -> str:
        what = f"{self.status} {self.code}".strip() if self.status else self.fault
        return f"{what} {self.seconds:.1f}s"


@dataclass(slots=True)
class SeenStream:
    """A stream as far as it came. ``gap``: the longest silence, in seconds."""

    request_id: str
    status: int = 0
    events: int = 0
    comments: int = 0
    gap: float = 0.0
    seconds: float = 0.0
    done: bool = False
    error: str = ""
    fault: str = ""

    def __str__(self) -> str:
        end = "[DONE]" if self.done else self.error or self.fault or "open"
        return f"{self.status} {self.events} events, {end} {self.seconds:.1f}s"


class Caller:
    """Talks to a system as clients and operators do."""

    def __init__(self, system: System, session: aiohttp.ClientSession) -> None:
        self.system = system
        #: The form of FxA's tokens where a test names none.
        self.fxa_kind = "jwt"
        self._session = session

    @classmethod
    @asynccontextmanager
    async def open(cls, system: System) -> AsyncIterator[Self]:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:
            yield cls(system, session)

    async def ask(self, method: str, url: str | URL, *, patience: float = PATIENCE, **options: Any) -> Seen:
        """Any request. A connection that was closed before the request went out is not made up for."""
        started = time.perf_counter()
        try:
            async with (
                asyncio.timeout(patience),
                self._session.request(method, url, allow_redirects=False, **options) as response,
            ):
                body = await response.read()
                return Seen(response.status, time.perf_counter() - started, response.headers, body)
        except TimeoutError:
            return Seen(0, time.perf_counter() - started, fault="hangs")
        except (aiohttp.ClientError, OSError) as error:
            return Seen(0, time.perf_counter() - started, fault=type(error).__name__)

    # --- credentials

    async def fxa_token(self, **order: Any) -> str:
        """A token of the stand-in, past every gate: ``uid``, ``kind``, ``scopes``, ``ttl``."""
        url = f"http://127.0.0.1:{self.system.listens['fxa']}/local/token"
        return str((await self.ask("POST", url, json={"kind": self.fxa_kind, **order})).json()["token"])

    async def event(self, uid: str, event: Event, **change: int) -> str:
        """A token of FxA's, signed with the stand-in's key, that tells of an account; ``change``: its details."""
        stand_in = StandIn(self.system.environment["FXA_ISSUER"], fxa_keys(self.system.folder))
        events = {f"https://schemas.accounts.firefox.com/event/{event}": change}
        return stand_in.security_event(EventOrder(uid, event), events=events)

    async def deliver(self, event: str) -> Seen:
        url = f"{self.system.auth_url}/fxa/events"
        return await self.ask("POST", url, headers={"Authorization": f"Bearer {event}"})

    async def exchange(self, subject_token: str, kind: str = ACCESS_TOKEN, scope: str = "ai", **form: str) -> Seen:
        asked = {
            "grant_type": GRANT_TYPE,
            "subject_token": subject_token,
            "subject_token_type": kind,
            "scope": scope,
            **form,
        }
        return await self.ask("POST", f"{self.system.auth_url}/token", data=asked)

    async def account(self, uid: str | None = None, scope: str = "ai") -> tuple[str, str]:
        """``(user id, access token)`` of an FxA account."""
        uid = uid or uuid.uuid4().hex
        seen = await self.exchange(await self.fxa_token(uid=uid), scope=scope)
        assert seen.status == 200, seen
        return f"{uid}:{scope}", str(seen.json()["access_token"])

    def device(self, **options: Any) -> Device:
        return Device(self.system.pki, TEAM, BUNDLE_ID, **options)

    async def challenge(self, device: Device) -> Seen:
        parameters = {"key_id_b64": device.key_id_b64}
        return await self.ask("GET", f"{self.system.auth_url}/verify/challenge", params=parameters)

    async def attest(self, device: Device, challenge: str) -> Seen:
        body = {
            "key_id_b64": device.key_id_b64,
            "challenge_b64": base64.b64encode(challenge.encode()).decode(),
            "attestation_obj_b64": base64.b64encode(device.attest(challenge)).decode(),
            "bundle_id": device.bundle_id,
        }
        return await self.ask("POST", f"{self.system.auth_url}/verify/attest", json=body)

    async def enrol(self, device: Device) -> Seen:
        seen = await self.challenge(device)
        return await self.attest(device, seen.json()["challenge"]) if seen.status == 200 else seen

    async def enrolled(self, **options: Any) -> Device:
        device = self.device(**options)
        assert (await self.enrol(device)).status == 201
        return device

    async def exchange_device(self, device: Device, scope: str = "ai") -> Seen:
        seen = await self.challenge(device)
        if seen.status != 200:
            return seen
        subject = self.assertion(device, seen.json()["challenge"], scope)
        exchanged = await self.exchange(subject, ASSERTION, scope)
        exchanged.seconds += seen.seconds
        return exchanged

    def assertion(self, device: Device, challenge: str, scope: str = "ai", **changes: Any) -> str:
        """The subject_token that a device makes; ``changes`` replace parts of the signed data."""
        meant = {"typ": "mlpa-token-exchange", "aud": self.system.issuer, "challenge": challenge, "scope": scope}
        return subject_token(device, json.dumps({**meant, **changes}).encode())

    # --- the gateway

    async def chat(
        self, token: str, *, model: str = "double", text: str = "Hi", gateway: str | None = None, request_id: str = ""
    ) -> Seen:
        headers = {"Authorization": f"Bearer {token}", "X-Request-ID": request_id or uuid.uuid4().hex}
        return await self.ask("POST", self._chat_url(gateway), json=_body(model, text, stream=False), headers=headers)

    async def stream(
        self, token: str, seen: SeenStream | None = None, *, model: str = "double", gateway: str | None = None
    ) -> SeenStream:
        """A stream to its end; ``seen`` can be looked at while it runs."""
        seen = seen or SeenStream(uuid.uuid4().hex)
        headers = {"Authorization": f"Bearer {token}", "X-Request-ID": seen.request_id}
        started = last = time.perf_counter()
        try:
            async with (
                asyncio.timeout(4 * PATIENCE),
                self._session.post(
                    self._chat_url(gateway), json=_body(model, "Hi", stream=True), headers=headers
                ) as response,
            ):
                seen.status = response.status
                if response.status != 200:
                    seen.error = Seen(response.status, 0, body=await response.read()).code
                async for line in response.content:
                    now = time.perf_counter()
                    seen.gap, last = max(seen.gap, now - last), now
                    _note(seen, line)
        except TimeoutError:
            seen.fault = "hangs"
        except (aiohttp.ClientError, OSError) as error:
            seen.fault = type(error).__name__
        seen.seconds = time.perf_counter() - started
        return seen

    async def budget(self, token: str, gateway: str | None = None) -> Seen:
        url = f"{self.system.url(gateway or self.system.gateways[0])}/v1/budget"
        return await self.ask("GET", url, headers={"Authorization": f"Bearer {token}"})

    def _chat_url(self, gateway: str | None) -> str:
        return f"{self.system.url(gateway or self.system.gateways[0])}/v1/chat/completions"

    # --- operators

    async def admin(self, method: str, path: str, *, key: str = SECRETS["MLPA_ADMIN_KEY"], **options: Any) -> Seen:
        url = f"{self.system.auth_url}{path}"
        return await self.ask(method, url, headers={"Authorization": f"Bearer {key}"}, **options)

    async def block(self, user_id: str, *, undo: bool = False) -> Seen:
        return await self.admin("POST", f"/user/{quote(user_id, safe='')}/{'unblock' if undo else 'block'}", json={})

    async def erase(self, identity: str) -> Seen:
        return await self.admin("DELETE", f"/user/{quote(identity, safe='')}")

    async def export(self, identity: str) -> Seen:
        return await self.admin("GET", f"/user/{quote(identity, safe='')}/export", patience=2 * PATIENCE)

    async def readiness(self, name: str) -> Seen:
        return await self.ask("GET", f"{self.system.url(name)}/health/readiness", patience=4)

    async def metrics(self, name: str) -> bytes:
        """What a service exposes to Prometheus."""
        return (await self.ask("GET", f"{self.system.url(name)}/metrics")).body

    async def script(self, model: str, steps: list[tuple[str, Any]], **options: Any) -> None:
        """What LiteLLM answers requests for a model."""
        url = f"http://127.0.0.1:{self.system.listens['litellm']}/double/script"
        seen = await self.ask("POST", url, json={"model": model, "steps": steps, **options})
        assert seen.status == 200, seen

    async def open_gate(self, name: str) -> None:
        """Let LiteLLM go on with what waits at a gate of its script."""
        url = f"http://127.0.0.1:{self.system.listens['litellm']}/double/gate/{name}"
        assert (await self.ask("POST", url)).status == 200


def _body(model: str, text: str, *, stream: bool) -> dict[str, Any]:
    return {
        "model": model,
        "stream": stream,
        "max_completion_tokens": 200,
        "messages": [{"role": "user", "content": text}],
    }


def _note(seen: SeenStream, line: bytes) -> None:
    if line.startswith(b":"):
        seen.comments += 1
    if not line.startswith(b"data:"):
        return
    data = line.removeprefix(b"data:").strip()
    if data == b"[DONE]":
        seen.done = True
    elif b'"error"' in data:
        seen.error = str(json.loads(data)["error"]["code"])
    else:
        seen.events += 1
