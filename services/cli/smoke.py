"""``mlpa smoke``: try a running deployment from outside, as a client would."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import aiohttp
import click

from services.cli.client import Client, RequestFailed

#: The fewest completion tokens that every model can be asked for.
_TOKENS = 16
_TIMEOUT = aiohttp.ClientTimeout(total=60, connect=10)

Step = Callable[[], Awaitable[str]]


@click.command()
@click.option("--gateway-url", required=True, help="The gateway, as clients reach it.")
@click.option("--auth-url", required=True, help="Auth, as clients reach it: its issuer.")
@click.option("--fxa-token", help="An FxA token: it is exchanged, and a chat is asked and paid for.")
@click.option("--service-type", default="ai", show_default=True, help="That of the chat.")
@click.option("--model", help="That of the chat; the first that the token may use, if not given.")
def smoke(gateway_url: str, auth_url: str, fxa_token: str | None, service_type: str, model: str | None) -> None:
    """Try a running deployment from outside. One line each, exit code 1 if something fails."""
    run = _Smoke(gateway_url.rstrip("/"), auth_url.rstrip("/"))
    if not asyncio.run(run.all(fxa_token, service_type, model)):
        raise SystemExit(1)


class _Smoke:
    """The steps, one line each; a failed one does not keep the others from being tried."""

    def __init__(self, gateway: str, auth: str) -> None:
        self._gateway, self._auth = gateway, auth

    async def all(self, fxa_token: str | None, service_type: str, model: str | None) -> bool:
        """Whether all went well."""
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            self._session = session
            results = []
            for name, base in (("auth", self._auth), ("gateway", self._gateway)):
                results.append(await self._try(f"{name} is alive", partial(self._alive, base)))
                results.append(await self._try(f"{name} is ready", partial(self._ready, base)))
                results.append(await self._try(f"{name}'s document", partial(self._document, base)))
            results.append(await self._try("issuer and key set", self._keys))
            if fxa_token is not None:
                client = Client(session, auth_url=self._auth, gateway_url=self._gateway)
                chat = partial(_chat, client, fxa_token, service_type, model)
                results.append(await self._try("exchange and chat", chat))
        return all(results)

    async def _try(self, name: str, step: Step) -> bool:
        try:
            said, well = await step(), True
        except (RequestFailed, ValueError, KeyError, TypeError) as error:
            said, well = str(error) or type(error).__name__, False
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            said, well = f"no answer ({type(error).__name__})", False
        click.echo(f"{'ok  ' if well else 'FAIL'} {name}{': ' if said else ''}{said}")
        return well

    async def _get(self, url: str) -> Any:
        """:raises RequestFailed: it is not 200 with JSON."""
        async with self._session.get(url) as response:
            if response.status != 200:
                raise RequestFailed(f"GET {url}: {response.status}")
            return await response.json()

    async def _alive(self, base: str) -> str:
        await self._get(f"{base}/health/liveness")
        return str((await self._get(f"{base}/__version__"))["version"])

    async def _ready(self, base: str) -> str:
        async with self._session.get(f"{base}/health/readiness") as response:
            body = await response.json()
        failed = [f"{name} ({check['error']})" for name, check in body["checks"].items() if check["status"] != "ok"]
        if response.status != 200:
            raise RequestFailed(f"{body['status']}: {', '.join(failed)}")
        return f"{body['status']}{': ' if failed else ''}{', '.join(failed)}"

    async def _document(self, base: str) -> str:
        document = await self._get(f"{base}/openapi.json")
        return f"{len(document['paths'])} paths"

    async def _keys(self) -> str:
        metadata = await self._get(f"{self._auth}/.well-known/oauth-authorization-server")
        if metadata["issuer"] != self._auth:
            raise RequestFailed(f"the issuer is {metadata['issuer']}, not {self._auth}")
        keys = (await self._get(metadata["jwks_uri"]))["keys"]
        if not keys:
            raise RequestFailed("the key set is empty")
        return f"{len(keys)} keys"


async def _chat(client: Client, fxa_token: str, service_type: str, model: str | None) -> str:
    """Exchange the token, ask a chat of the fewest tokens, and say what it cost.

    :raises RequestFailed: a service refused, or the answer had no text.
    """
    token = await client.exchange_fxa(fxa_token, service_type)
    model = model or (await client.models(token))[0]
    before = await client.budget(token)
    text = "".join([piece async for piece in client.chat(token, model=model, text="Say hi.", max_tokens=_TOKENS)])
    after = await client.budget(token)
    if not text:
        raise RequestFailed(f"{model} answered nothing")
    return f"{model} answered {len(text)} characters; {after['spent_usd'] - before['spent_usd']:.9f} USD more are spent"
