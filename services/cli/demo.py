"""The demonstration of ``mlpa up``: a device, an account and an install use the running system over HTTP."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
from openai import AsyncOpenAI, OpenAIError
from rich.text import Text

from services.cli.client import Client, RequestFailed
from services.cli.console import Console
from services.cli.supervisor import RunningSystem
from services.local.device import Device
from services.local.pki import Pki
from services.local.play import Install
from services.local.process import ProcessError

_SCOPE = "ai"
_MODEL = "local/slow"
_UID = "0123456789abcdef0123456789abcdef"


async def demonstrate(system: RunningSystem, console: Console) -> None:
    """Enrol a device, exchange and stream; the same as an account, as an install, with the official client, and as
    shipped Firefox.

    :raises ProcessError: a part of the system misbehaved.
    """
    try:
        await _demonstrate(system, console)
    except (RequestFailed, aiohttp.ClientError, OpenAIError) as error:
        raise ProcessError(f"the demonstration failed: {error}") from error
    _next_steps(system, console)


async def _demonstrate(system: RunningSystem, console: Console) -> None:
    async with Client.open(auth_url=system.auth_url, gateway_url=system.gateway_url) as client:
        device, device_token = await _device(system, console, client)
        order = {"uid": _UID, "scopes": ["profile:uid"], "kind": "jwt"}
        fxa_token = (await client.order(f"{system.fxa_url}/local/token", order))["token"]
        access_token = await _account(console, client, fxa_token)
        await _openai(system, console, client, fxa_token)
        install_token = await _install(system, console, client)
        await _spent(console, client, {"device": device_token, "account": access_token, "install": install_token})
        await _shipped(console, client, device, fxa_token, install_token)
        await _password_change(system, console, client, access_token)


async def _device(system: RunningSystem, console: Console, client: Client) -> tuple[Device, str]:
    console.heading("An iOS device, by App Attest")
    pki = await asyncio.to_thread((system.data / "app-attest" / "pki.json").read_text)
    device = Device(
        pki=Pki.from_json(pki),
        team_id=system.environment["APP_DEVELOPMENT_TEAM"],
        bundle_id=system.environment["APP_ATTEST_BUNDLE_IDS"].split(",")[0],
    )
    with console.step("enrol", "challenge, attestation") as step:
        await client.enrol(device)
        step.done(f"key {device.key_id_b64[:12]}… attested and stored")
    token = await _step_exchange(console, lambda: client.exchange_device(device, _SCOPE), "assertion")
    await _stream(console, client.chat(token, model=_MODEL, text="Who are you?", max_tokens=400))
    return device, token


async def _account(console: Console, client: Client, fxa_token: str) -> str:
    console.heading("A Firefox account, by FxA")
    token = await _step_exchange(console, lambda: client.exchange_fxa(fxa_token, _SCOPE), "FxA token")
    await _stream(console, client.chat(token, model=_MODEL, text="And what can you do for me?", max_tokens=400))
    return token


async def _openai(system: RunningSystem, console: Console, client: Client, fxa_token: str) -> None:
    console.heading("The official openai client, renewing its token by itself")

    async def renew() -> str:
        return await client.exchange_fxa(fxa_token, _SCOPE)

    async with AsyncOpenAI(base_url=f"{system.gateway_url}/v1", api_key=renew) as openai:

        async def pieces() -> AsyncIterator[str]:
            stream = await openai.chat.completions.create(
                model="openai/gpt-4o",
                messages=[{"role": "user", "content": "Say hello."}],
                max_completion_tokens=60,
                stream=True,
            )
            async for chunk in stream:
                if chunk.choices:
                    yield chunk.choices[0].delta.content or ""

        await _stream(console, pieces())


async def _shipped(console: Console, client: Client, device: Device, fxa_token: str, install_token: str) -> None:
    console.heading("Firefox as it was shipped, which sends its credential with each request")
    console.note("  desktop, with its FxA token")
    asked = client.chat_as_desktop(fxa_token, _SCOPE, model=_MODEL, text="Do you know this tab?", max_tokens=400)
    await _stream(console, asked)
    console.note("  iOS, with an assertion over the request")
    await _stream(console, client.chat_as_ios(device, "s2s", model=_MODEL, text="Sum this up.", max_tokens=400))
    console.note("  Android, with the token of its install")
    asked = client.chat_as_android(install_token, "s2s-android", model=_MODEL, text="Sum this up.", max_tokens=400)
    await _stream(console, asked)


async def _password_change(system: RunningSystem, console: Console, client: Client, access_token: str) -> None:
    console.heading("A new password of the account, of which FxA tells auth")
    with console.step("event", "from FxA to auth") as step:
        status = (await client.order(f"{system.fxa_url}/local/events", {"uid": _UID}))["status"]
        try:
            await client.budget(access_token)
        except RequestFailed as refused:
            step.done(f"auth answered {status}; the token of before: {refused}")
        else:
            raise ProcessError("a token of before the new password is still good")


async def _install(system: RunningSystem, console: Console, client: Client) -> str:
    console.heading("An Android app from Google Play, by Play Integrity")
    install = Install(package=system.environment["PLAY_PACKAGES"].split(",")[0])
    google = system.environment["PLAY_BASE_URL"]
    exchange = functools.partial(client.exchange_install, install, google, "s2s")
    token = await _step_exchange(console, exchange, "integrity token")
    await _stream(console, client.chat(token, model=_MODEL, text="What is this page about?", max_tokens=400))
    return token


async def _step_exchange(console: Console, exchange: Callable[[], Awaitable[str]], what: str) -> str:
    with console.step("exchange", f"{what} for an access token") as step:
        token = await exchange()
        step.done(f"{what} → access token of {len(token)} characters")
    return token


async def _stream(console: Console, pieces: AsyncIterator[str]) -> None:
    """Show an answer as it comes."""
    started = time.perf_counter()
    first: float | None = None
    console.out.print(Text.assemble(("  ▸ ", "cyan"), ("answer       ", "bold")), end="")
    async for piece in pieces:
        if piece and first is None:
            first = time.perf_counter() - started
        console.out.print(Text(piece, style="italic"), end="")
    total = time.perf_counter() - started
    console.out.print()
    console.note(f"              first token after {(first or total) * 1000:.0f} ms, all after {total * 1000:.0f} ms")


async def _spent(console: Console, client: Client, tokens: dict[str, str]) -> None:
    console.heading("What it cost")
    for name, token in tokens.items():
        budget = await client.budget(token)
        spent, limit = budget["spent_usd"], budget["max_budget_usd"]
        console.line("▸", name, f"{spent:.9f} of {limit:.2f} USD spent, until {budget['resets_at']}", style="cyan")


def _next_steps(system: RunningSystem, console: Console) -> None:
    console.heading("Next steps")
    data = "" if system.data.name == ".mlpa" else f"--data {system.data} "
    mlpa = ".venv/bin/mlpa"
    for line in (
        f"{mlpa} device {data}new && {mlpa} device {data}enroll && TOKEN=$({mlpa} device {data}token)",
        f'curl -s {system.gateway_url}/v1/models -H "Authorization: Bearer $TOKEN"',
        f'curl -sN {system.gateway_url}/v1/chat/completions -H "Authorization: Bearer $TOKEN" '
        "-H 'Content-Type: application/json' "
        f"""-d '{{"model":"{_MODEL}","stream":true,"messages":[{{"role":"user","content":"Hi"}}]}}'""",
        f'curl -s {system.gateway_url}/v1/budget -H "Authorization: Bearer $TOKEN"',
    ):
        console.out.print(Text(f"  {line}", style="cyan"))
