"""A client of a running system, as an app or a browser is one; for the demonstration and commands."""

from __future__ import annotations

import base64
import hmac
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

import aiohttp

from services.local.device import Device
from services.local.play import Install
from shared.domain.identity import Credential
from shared.domain.tokens import GRANT_TYPE, encode_segment

ACCESS_TOKEN, ASSERTION = Credential.FXA.subject_token_type, Credential.APP_ATTEST.subject_token_type


class RequestFailed(Exception):
    """A service refused a request; the message is the service's."""


class Client:
    """A client of auth and the gateway over HTTP. Every method raises ``RequestFailed``."""

    def __init__(self, session: aiohttp.ClientSession, *, auth_url: str, gateway_url: str) -> None:
        self._session, self._auth, self._gateway = session, auth_url, gateway_url

    @classmethod
    @asynccontextmanager
    async def open(cls, *, auth_url: str, gateway_url: str) -> AsyncIterator[Self]:
        async with aiohttp.ClientSession() as session:
            yield cls(session, auth_url=auth_url, gateway_url=gateway_url)

    async def challenge(self, device: Device) -> str:
        answer = await self._ask("GET", f"{self._auth}/verify/challenge", params={"key_id_b64": device.key_id_b64})
        return str(answer["challenge"])

    async def enrol(self, device: Device) -> None:
        challenge = await self.challenge(device)
        body = {
            "key_id_b64": device.key_id_b64,
            "challenge_b64": _base64(challenge.encode()),
            "attestation_obj_b64": _base64(device.attest(challenge)),
            "bundle_id": device.bundle_id,
        }
        await self._ask("POST", f"{self._auth}/verify/attest", json=body)

    async def exchange_device(self, device: Device, scope: str) -> str:
        """An access token for an enrolled device."""
        client_data = json.dumps(
            {
                "typ": "mlpa-token-exchange",
                "aud": await self.issuer(),
                "challenge": await self.challenge(device),
                "scope": scope,
            }
        ).encode()
        return await self._exchange(subject_token(device, client_data), ASSERTION, scope)

    async def exchange_fxa(self, fxa_token: str, scope: str) -> str:
        """An access token for an FxA account."""
        return await self._exchange(fxa_token, ACCESS_TOKEN, scope)

    async def exchange_install(self, install: Install, google_url: str, service_type: str) -> str:
        """An access token for an install, with an integrity token of the stand-in for Google."""
        order = {"request_hash": install.request_hash, "package": install.package}
        granted = await self.order(f"{google_url}/local/integrity-token", order)
        body = {
            "user_id": install.user_id,
            "integrity_token": granted["token"],
            "package_name": install.package,
            "service_type": service_type,
        }
        answer = await self._ask("POST", f"{self._auth}/verify/play", json=body)
        return str(answer["access_token"])

    async def order(self, url: str, order: dict[str, Any]) -> dict[str, Any]:
        """The answer of a stand-in."""
        return await self._ask("POST", url, json=order)

    async def issuer(self) -> str:
        metadata = await self._ask("GET", f"{self._auth}/.well-known/oauth-authorization-server")
        return str(metadata["issuer"])

    async def _exchange(self, subject_token: str, kind: str, scope: str) -> str:
        form = {"grant_type": GRANT_TYPE, "subject_token": subject_token, "subject_token_type": kind, "scope": scope}
        answer = await self._ask("POST", f"{self._auth}/token", data=form)
        return str(answer["access_token"])

    def chat(self, token: str, **asked: Any) -> AsyncIterator[str]:
        """The answer's text, piece by piece as it is streamed.

        :param asked: ``model``, ``text`` and ``max_tokens``.
        """
        return self._stream(json.dumps(_body(**asked)).encode(), _bearer(token))

    async def chat_as_ios(self, device: Device, scope: str, **asked: Any) -> AsyncIterator[str]:
        """Ask as shipped Firefox for iOS does: with a fresh challenge, and an assertion over the body."""
        challenge = await self.challenge(device)
        body = json.dumps(_body(**asked), sort_keys=True, separators=(",", ":")).encode()
        claims = {
            "key_id_b64": device.key_id_b64,
            "challenge_b64": _base64(challenge.encode()),
            "assertion_obj_b64": _base64(device.assert_(body)),
            "bundle_id": device.bundle_id,
        }
        # HS256 with a throw-away secret: nobody checks it
        head, payload = (encode_segment(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims))
        signature = encode_segment(hmac.digest(secrets.token_bytes(32), f"{head}.{payload}".encode(), "sha256"))
        headers = {
            **_bearer(f"{head}.{payload}.{signature}"),
            "service-type": scope,
            "use-app-attest": "true",
            "Accept": "text/event-stream",
        }
        async for piece in self._stream(body, headers):
            yield piece

    def chat_as_desktop(self, fxa_token: str, scope: str, **asked: Any) -> AsyncIterator[str]:
        """Ask as shipped Firefox for desktop does: with its FxA token."""
        headers = {**_bearer(fxa_token), "service-type": scope, "purpose": "chat", "x-engine-id": "smart-openai"}
        return self._stream(json.dumps({**_body(**asked), "tools": []}).encode(), headers)

    def chat_as_android(self, token: str, scope: str, **asked: Any) -> AsyncIterator[str]:
        """Ask as shipped Firefox for Android does: with the access token of its install."""
        headers = {**_bearer(token), "service-type": scope, "use-play-integrity": "true"}
        return self._stream(json.dumps(_body(**asked)).encode(), headers)

    async def _stream(self, body: bytes, headers: Mapping[str, str]) -> AsyncIterator[str]:
        url = f"{self._gateway}/v1/chat/completions"
        given = {**headers, "Content-Type": "application/json"}
        async with self._session.post(url, data=body, headers=given) as response:
            await _raise_for_error(response)
            async for line in response.content:
                data = line.removeprefix(b"data:").strip()
                if not line.startswith(b"data:") or data == b"[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    raise RequestFailed(_said(event))
                for choice in event["choices"]:
                    yield choice["delta"].get("content") or ""

    async def models(self, token: str) -> list[str]:
        """The models that a token may use; none is a refusal."""
        answer = await self._ask("GET", f"{self._gateway}/v1/models", headers=_bearer(token))
        names = [str(one["id"]) for one in answer["data"]]
        if not names:
            raise RequestFailed("this token may use no model")
        return names

    async def budget(self, token: str) -> dict[str, Any]:
        return await self._ask("GET", f"{self._gateway}/v1/budget", headers=_bearer(token))

    async def _ask(self, method: str, url: str, **options: Any) -> dict[str, Any]:
        async with self._session.request(method, url, **options) as response:
            await _raise_for_error(response)
            answer: dict[str, Any] = await response.json()
            return answer


def subject_token(device: Device, client_data: bytes) -> str:
    """A device's subject token: its assertion of the client data, with that data (JSON)."""
    subject = {
        "key_id_b64": device.key_id_b64,
        "assertion_obj_b64": _base64(device.assert_(client_data)),
        "client_data_b64": _base64(client_data),
        "bundle_id": device.bundle_id,
    }
    return encode_segment(json.dumps(subject).encode())


async def _raise_for_error(response: aiohttp.ClientResponse) -> None:
    if response.ok:
        return
    try:
        said = _said(await response.json())
    except (aiohttp.ContentTypeError, ValueError, KeyError, TypeError):
        said = response.reason or ""
    raise RequestFailed(f"{response.method} {response.url.path}: {response.status} {said}")


def _said(body: dict[str, Any]) -> str:
    """The text of an error of auth or of the gateway, in whichever of their forms.

    :raises KeyError, TypeError: it has none of them.
    """
    error = body.get("error", body.get("detail"))
    if isinstance(error, dict):
        return str(error["message"] if "message" in error else error["error"])
    return f"{error}: {body['error_description']}" if "error_description" in body else str(error)


def _body(*, model: str, text: str, max_tokens: int | None = None) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "stream": True, "messages": [{"role": "user", "content": text}]}
    if max_tokens is not None:
        body["max_completion_tokens"] = max_tokens
    return body


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
