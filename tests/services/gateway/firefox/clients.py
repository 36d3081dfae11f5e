"""The three shipped clients: the bytes that they send, and parsers with their rules for what they get.

iOS        mozilla-mobile/firefox-ios, MLPAKit: JSON with sorted keys, an assertion over the body in a JWT; events are
           split at empty lines, and one that does not begin with ``data: `` is dropped
Android    mozilla-firefox/firefox, components/lib/llm-mlpa: six characters are taken off every line of a stream that
           is not empty and not ``[DONE]``, and the rest is decoded
desktop    mozilla-firefox/firefox, toolkit/components/ml: OpenAI's SDK for JavaScript; here only its requests, the SDK
           itself is in ``test_desktop_sdk.py``
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from services.local.device import Device


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def chat(model: str = "gpt", **members: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}], **members}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    raw: bytes

    def json(self) -> Any:
        return json.loads(self.raw)


def request(fields: list[tuple[str, str]], body: bytes, path: str = "/v1/chat/completions") -> bytes:
    """A request with these header fields, in this order."""
    head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields)
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def jwt(claims: dict[str, Any]) -> str:
    """What iOS makes: HS256 with a throw-away secret, neither ``iat`` nor ``exp``."""

    def segment(raw: bytes) -> str:
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    head = segment(b'{"alg":"HS256","typ":"JWT"}')
    return f"{head}.{segment(json.dumps(claims).encode())}.{segment(b'nobody checks this signature....')}"


def ios(
    device: Device,
    challenge: str,
    body: dict[str, Any],
    *,
    service_type: str = "s2s",
    sent: bytes | None = None,
    raw: bytes | None = None,
    claims: dict[str, Any] | None = None,
    drop: tuple[str, ...] = (),
    path: str = "/v1/chat/completions",
) -> bytes:
    """A chat of Firefox for iOS.

    :param raw: the body that the device signs, if not ``body`` as iOS encodes it.
    :param sent: another body, as somebody on the way would change it.
    :param claims: other claims of the JWT.
    """
    raw = json.dumps(body, sort_keys=True, separators=(",", ":")).replace("/", "\\/").encode() if raw is None else raw
    token = jwt(
        {
            "key_id_b64": device.key_id_b64,
            "challenge_b64": base64.b64encode(challenge.encode()).decode(),
            "assertion_obj_b64": base64.b64encode(device.assert_(raw)).decode(),
            "bundle_id": device.bundle_id,
            **(claims or {}),
        }
    )
    fields = [
        ("Host", "mlpa.example.org"),
        ("Content-Type", "application/json"),
        ("Accept", "text/event-stream" if body.get("stream") else "*/*"),
        ("Authorization", f"Bearer {token}"),
        ("service-type", service_type),
        ("use-app-attest", "true"),
        ("Accept-Language", "en-US,en;q=0.9"),
        ("Accept-Encoding", "gzip, deflate, br"),
        ("User-Agent", "Fennec/1 CFNetwork/3826.500.111 Darwin/25.0.0"),
        ("Connection", "keep-alive"),
    ]
    kept = [(name, value) for name, value in fields if name not in drop]
    return request(kept, raw if sent is None else sent, path)


def desktop(
    token: str | None,
    body: dict[str, Any],
    *,
    service_type: str | None = "ai",
    purpose: str | None = "chat",
    raw: bytes | None = None,
    more: list[tuple[str, str]] | None = None,
    path: str = "/v1/chat/completions",
) -> bytes:
    """A chat of Smart Window, or a search."""
    fields = [
        ("Host", "mlpa.example.org"),
        ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:148.0) Gecko/20100101 Firefox/148.0"),
        ("Accept", "application/json"),
        ("Accept-Language", "en-US,en;q=0.9"),
        ("Accept-Encoding", "gzip, deflate, br, zstd"),
        *([("Authorization", f"Bearer {token}")] if token is not None else []),
        ("Content-Type", "application/json"),
        *([("service-type", service_type)] if service_type is not None else []),
        *([("purpose", purpose)] if purpose is not None else []),
        ("x-engine-id", "smart-openai"),
        ("X-Stainless-Lang", "js"),
        ("X-Stainless-Package-Version", "7.5.0"),
        ("X-Stainless-Retry-Count", "0"),
        ("X-Stainless-Timeout", "600"),
        ("Connection", "keep-alive"),
        *(more or []),
    ]
    return request(fields, json.dumps(body).encode() if raw is None else raw, path)


def android(token: str, body: dict[str, Any], *, service_type: str = "s2s-android") -> bytes:
    """A chat of Firefox for Android."""
    fields = [
        ("Host", "mlpa.example.org"),
        ("authorization", f"Bearer {token}"),
        ("content-type", "application/json"),
        ("service-type", service_type),
        ("use-play-integrity", "true"),
        ("User-Agent", "Mozilla/5.0 (Android 16; Mobile; rv:148.0) Gecko/148.0 Firefox/148.0"),
    ]
    return request(fields, json.dumps(body).encode())


async def send(port: int, sent: bytes, *, seconds: float = 20) -> Answer:
    """The whole answer to these bytes, without its chunks."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        async with asyncio.timeout(seconds):
            head = await reader.readuntil(b"\r\n\r\n")
            status_line, *lines = head.decode("latin-1").split("\r\n")
            headers = {
                name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
            body = b""
            if headers.get("transfer-encoding") == "chunked":
                while size := int((await reader.readline()).split(b";")[0], 16):
                    body += await reader.readexactly(size)
                    await reader.readexactly(2)
            elif "content-length" in headers:
                body = await reader.readexactly(int(headers["content-length"]))
        return Answer(int(status_line.split(" ")[1]), headers, body)
    finally:
        writer.close()


class Broken(Exception):
    """The client shows an error."""


def ios_stream(raw: bytes) -> str:
    """The text that iOS shows of a stream."""
    shown = ""
    for event in raw.decode().split("\n\n"):
        if not event.startswith("data: "):
            continue
        payload = event.removeprefix("data: ")
        if payload == "[DONE]":
            continue
        shown += _text(payload)
    return shown


def android_stream(raw: bytes) -> str:
    """The text that Android shows of a stream."""
    shown = ""
    for line in raw.decode().splitlines():
        if line and "[DONE]" not in line:
            shown += _text(line[6:])
    return shown


def _text(payload: str) -> str:
    try:
        event = json.loads(payload)
    except ValueError as error:
        raise Broken(payload) from error
    if event.get("error"):
        raise Broken(event["error"])
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])
