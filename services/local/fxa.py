"""A stand-in for FxA's OAuth server: one real HTTP server with the real shapes, and controls to mint and to break.

As FxA has them:
    GET  /v1/jwks          three RSA keys: the last one, the one that signs, and the next one
    POST /v1/verify        {"token"} -> the identity, or 400 with an errno
    POST /v1/destroy       {"token"} -> {}
    GET  /__lbheartbeat__

Controls, for local runs and tests only:
    POST   /local/token    {"uid", "scopes", "client_id", "kind": "jwt" | "opaque", "ttl"}, all optional -> {"token"}
    POST   /local/rotate   the next key signs from now on -> {"kid"}
    POST   /local/faults   a ``Fault``; replaces that of the same endpoint
    DELETE /local/faults   all is well again
    GET    /local/calls    {"jwks", "verify", "most_at_once"}

Run alone: ``python -m services.local.fxa --port 8082 --keys DIR``. It must listen on loopback only: whoever reaches
it can be anybody.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import click
import msgspec
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jose import jwk, jws, jwt
from jose.backends.base import Key
from jose.exceptions import JOSEError

from services.local.files import write_private

DESKTOP_CLIENT_ID = "5882386c6d801776"
DEFAULT_SCOPES = ("profile:uid",)
DEFAULT_TTL = 6 * 3600
ERRORS = {108: "Invalid token", 109: "Invalid request parameter", 115: "Expired token"}

_T = TypeVar("_T")
Kind = Literal["jwt", "opaque"]
Endpoint = Literal["jwks", "verify"]


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One RSA key. ``kid`` looks as FxA's: the day it was made, and eight characters."""

    kid: str
    pem: str
    private: Key = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        pem = rsa.generate_private_key(65537, 2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return cls.load(f"{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(4)}", pem.decode())

    @classmethod
    def load(cls, kid: str, pem: str) -> Self:
        return cls(kid, pem, jwk.construct(pem, "RS256"))

    def public(self) -> dict[str, Any]:
        return {**self.private.public_key().to_dict(), "kid": self.kid, "use": "sig"}


class KeyRing:
    """Three keys: the last one, the one that signs, and the next one, which is published before it is used."""

    def __init__(self, keys: Sequence[SigningKey], folder: Path | None = None) -> None:
        self._keys = list(keys)
        self._file = folder / "fxa-keys.json" if folder else None

    @classmethod
    def open(cls, folder: Path | None = None) -> Self:
        """The keys of a folder, made there when it has none; without a folder, new ones that are kept nowhere."""
        ring = cls((), folder)
        if ring._file is not None and ring._file.exists():
            ring._keys = [SigningKey.load(kid, pem) for kid, pem in msgspec.json.decode(ring._file.read_bytes())]
        else:
            ring._keys = [SigningKey.generate() for _ in range(3)]
            ring._save()
        return ring

    @property
    def signing(self) -> SigningKey:
        return self._keys[1]

    def rotate(self) -> None:
        self._keys = [*self._keys[1:], SigningKey.generate()]
        self._save()

    def published(self) -> list[dict[str, Any]]:
        return [key.public() for key in self._keys]

    def public_key(self, kid: str) -> Key | None:
        return next((key.private.public_key() for key in self._keys if key.kid == kid), None)

    def _save(self) -> None:
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(self._file, msgspec.json.encode([(key.kid, key.pem) for key in self._keys]).decode())


class TokenOrder(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a token is to say."""

    uid: str = msgspec.field(default_factory=lambda: secrets.token_hex(16))
    scopes: tuple[str, ...] = DEFAULT_SCOPES
    client_id: str = DESKTOP_CLIENT_ID
    kind: Kind = "jwt"
    ttl: float = DEFAULT_TTL


class Fault(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How an endpoint misbehaves.

    ``answer``: as ever (after ``latency`` seconds); ``respond``: with ``status``, ``body`` and ``headers``;
    ``hang``: never answers; ``reset``: the connection is reset. ``times``: for so many requests; 0 = until changed.
    """

    endpoint: Endpoint
    kind: Literal["answer", "respond", "hang", "reset"] = "answer"
    latency: float = 0
    status: int = 503
    body: str = ""
    headers: dict[str, str] = {}
    times: int = 0


@dataclass(frozen=True, slots=True)
class _Grant:
    order: TokenOrder
    expires_at: float


@dataclass(slots=True)
class _Calls:
    """What was asked of it. ``most_at_once``: of verifications."""

    by_endpoint: Counter[str] = field(default_factory=Counter)
    now: int = 0
    most_at_once: int = 0


class StandIn:
    """The server's state; ``app`` serves it."""

    def __init__(self, issuer: str, ring: KeyRing, *, clock: Callable[[], float] = time.time) -> None:
        self.issuer = issuer
        self.ring = ring
        self.calls = _Calls()
        self._clock = clock
        self._opaque: dict[str, _Grant] = {}
        self._faults: dict[str, Fault] = {}
        self._served: Counter[str] = Counter()  # since the endpoint's fault was set

    def mint(self, order: TokenOrder) -> str:
        """A token as FxA would make it."""
        now = self._clock()
        if order.kind == "opaque":
            token = secrets.token_hex(32)
            self._opaque[token] = _Grant(order, now + order.ttl)
            return token
        return self.sign(self.claims(order))

    def claims(self, order: TokenOrder) -> dict[str, Any]:
        now = int(self._clock())
        return {
            "aud": order.client_id,
            "client_id": order.client_id,
            "exp": now + int(order.ttl),
            "iat": now,
            "iss": self.issuer,
            "jti": secrets.token_hex(32),
            "scope": " ".join(order.scopes),
            "sub": order.uid,
            "fxa-generation": now * 1000,
        }

    def sign(self, claims: dict[str, Any], header: dict[str, Any] | None = None) -> str:
        """A JWT of any claims, signed by the current key; ``header`` adds to the header or changes it."""
        key = self.ring.signing
        headers = {"typ": "at+jwt", "kid": key.kid, **(header or {})}
        return str(jwt.encode(claims, key.private, algorithm="RS256", headers=headers))

    def destroy(self, token: str) -> None:
        """End an opaque token; nothing for others."""
        self._opaque.pop(token, None)

    def set_fault(self, fault: Fault) -> None:
        self._faults[fault.endpoint] = fault
        self._served[fault.endpoint] = 0

    def clear_faults(self) -> None:
        self._faults.clear()

    def app(self) -> web.Application:
        """Serve it with ``handler_cancellation=True``, so that who hangs is let go with its client."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/v1/jwks", self._misbehaving("jwks", self._jwks)),
                web.post("/v1/verify", self._misbehaving("verify", self._verify)),
                web.post("/v1/destroy", self._destroy),
                web.get("/__lbheartbeat__", self._heartbeat),
                web.post("/local/token", self._token),
                web.post("/local/rotate", self._rotate),
                web.post("/local/faults", self._set_fault),
                web.delete("/local/faults", self._clear_faults),
                web.get("/local/calls", self._show_calls),
            ]
        )
        return app

    def _misbehaving(
        self, endpoint: Endpoint, handler: Callable[[web.Request], Awaitable[web.Response]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            self.calls.by_endpoint[endpoint] += 1
            if endpoint == "jwks":
                return await self._with_fault(endpoint, request, handler)
            self.calls.now += 1
            self.calls.most_at_once = max(self.calls.most_at_once, self.calls.now)
            try:
                return await self._with_fault(endpoint, request, handler)
            finally:
                self.calls.now -= 1

        return handle

    async def _with_fault(
        self, endpoint: Endpoint, request: web.Request, handler: Callable[[web.Request], Awaitable[web.Response]]
    ) -> web.Response:
        fault = self._faults.get(endpoint, Fault(endpoint))
        self._served[endpoint] += 1
        if fault.times and self._served[endpoint] > fault.times:
            fault = Fault(endpoint)
        if fault.latency:
            await asyncio.sleep(fault.latency)
        if fault.kind == "hang":
            await asyncio.Event().wait()
        if fault.kind == "reset":
            _reset(request)
        if fault.kind == "respond":
            return web.Response(status=fault.status, body=fault.body.encode(), headers=fault.headers)
        return await handler(request)

    async def _jwks(self, _request: web.Request) -> web.Response:
        return web.json_response({"keys": self.ring.published()}, headers={"Cache-Control": "public, max-age=10"})

    async def _verify(self, request: web.Request) -> web.Response:
        token = await _token_of(request)
        if token is None:
            return _error(109)
        grant = self._opaque.get(token) or self._jwt_grant(token)
        if grant is None:
            return _error(108)
        if grant.expires_at <= self._clock():
            return _error(115)
        order = grant.order
        return web.json_response(
            {
                "user": order.uid,
                "client_id": order.client_id,
                "scope": list(order.scopes),
                "generation": 1,
                "profile_changed_at": 1,
            }
        )

    def _jwt_grant(self, token: str) -> _Grant | None:
        try:
            key = self.ring.public_key(str(jws.get_unverified_header(token).get("kid")))
            claims = msgspec.json.decode(jws.verify(token, key, algorithms=["RS256"])) if key else None
        except (JOSEError, ValueError):
            return None
        if not claims:
            return None
        order = TokenOrder(claims["sub"], tuple(claims["scope"].split()), claims["client_id"])
        return _Grant(order, claims["exp"])

    async def _destroy(self, request: web.Request) -> web.Response:
        token = await _token_of(request)
        if token is None:
            return _error(109)
        self.destroy(token)
        return web.json_response({})

    async def _heartbeat(self, _request: web.Request) -> web.Response:
        return web.json_response({})

    async def _token(self, request: web.Request) -> web.Response:
        return web.json_response({"token": self.mint(await _read(request, TokenOrder))})

    async def _rotate(self, _request: web.Request) -> web.Response:
        self.ring.rotate()
        return web.json_response({"kid": self.ring.signing.kid})

    async def _set_fault(self, request: web.Request) -> web.Response:
        self.set_fault(await _read(request, Fault))
        return web.json_response({})

    async def _clear_faults(self, _request: web.Request) -> web.Response:
        self.clear_faults()
        return web.json_response({})

    async def _show_calls(self, _request: web.Request) -> web.Response:
        calls = self.calls
        return web.json_response(
            {
                "jwks": calls.by_endpoint["jwks"],
                "verify": calls.by_endpoint["verify"],
                "most_at_once": calls.most_at_once,
            }
        )


async def _token_of(request: web.Request) -> str | None:
    """The ``token`` of a body, if it has FxA's shape."""
    try:
        body = msgspec.json.decode(await request.read())
    except ValueError:
        return None
    token = body.get("token") if isinstance(body, dict) else None
    return token if isinstance(token, str) and token else None


async def _read(request: web.Request, shape: type[_T]) -> _T:
    try:
        return msgspec.json.decode(await request.read() or b"{}", type=shape)
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"{error}\n") from error


def _error(errno: int) -> web.Response:
    return web.json_response(
        {"code": 400, "errno": errno, "error": "Bad Request", "message": ERRORS[errno]}, status=400
    )


def _reset(request: web.Request) -> None:
    transport = request.transport
    assert transport is not None
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, required=True, help="Port to listen on.")
@click.option("--issuer", help="The `iss` of its JWTs; its own URL when not given.")
@click.option("--keys", type=click.Path(path_type=Path), help="Folder that keeps its keys; none: new ones each time.")
def main(host: str, port: int, issuer: str | None, keys: Path | None) -> None:
    """Run the FxA stand-in."""
    stand_in = StandIn(issuer or f"http://{host}:{port}", KeyRing.open(keys))
    web.run_app(stand_in.app(), host=host, port=port, handler_cancellation=True, shutdown_timeout=1, print=None)


if __name__ == "__main__":
    main()
