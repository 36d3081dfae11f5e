"""A stand-in for FxA's OAuth server: one real HTTP server with FxA's shapes, and controls to mint and to break.

What it imitates, with the source. Files without a repository are in mozilla/fxa, below
packages/fxa-auth-server/lib; ``errors`` is libs/accounts/errors/src/oauth-error.ts there.

    JWT header: ``typ`` ``at+JWT``, RS256, ``kid``         oauth/jwt_access_token.js (HEADER_TYP), oauth/jwt.js
    ``typ`` read without case, ``application/`` optional   oauth/jwt.js (normalizeTyp), RFC 7515 section 4.1.9;
                                                           mozilla/PyFxA fxa/oauth.py (_verify_jwt_token) does so too
    JWT claims: aud, client_id, exp, iat, iss, jti         oauth/jwt_access_token.js (create): ``aud`` is the client id,
    (64 hex digits), scope (separated by spaces), sub      or a list of it and the resource; ``fxa-generation`` is of
    (32), fxa-generation, fxa-profileChangedAt             the account, not of the token
    opaque tokens: 64 lower-case hex digits                oauth/validators.js (HEX_STRING, token)
    GET /v1/jwks: the current key, the next, the last;     oauth/keys.ts (extractPublicKey, generatePrivateKey): kty,
    kid = day + 8 hex digits of the public key's SHA-256   alg, kid, fxa-createdAt (whole hours), use, n, e
    its Cache-Control                                      routes/oauth/jwks.js (10 s, public), as hapi's
                                                           lib/headers.js writes it
    POST /v1/verify {"token"}, as JSON or as a form; other routes/oauth/verify.js, routes/oauth/index.js, server.js
    members are ignored; a JWT has 1,024 characters at     (stripUnknown), oauth/validators.js (accessToken)
    most
    its answer: user, client_id, scope (a list),           oauth/token.js (verify): ``generation`` only of a JWT that
    profile_changed_at, generation                         lives for 6 hours or less, which FxA does not store
    a JWT that has expired or is wrongly signed is 108,    oauth/jwt_access_token.js (verify), oauth/token.js
    an opaque token that has expired is 115
    errors: code, errno, error, message, info;             errors (invalidToken 108, invalidRequestParameter 109,
    ``validation`` with 109, ``expiredAt`` with 115        invalidContentType 113 with 415, expiredToken 115; others,
                                                           such as malformed JSON: 999)
    a body without Content-Type is JSON; none at all: 109  hapi.dev, route.options.payload.defaultContentType; null
                                                           is not the object that verify.js demands
    POST /v1/destroy {"token"} -> {}; what is not stored   routes/oauth/destroy.js
    is 108, and so is a JWT that lives for 6 hours or less
    GET /__lbheartbeat__ -> {}                             the Dockerflow of every Mozilla service
    events: POST with Authorization: Bearer and no body;   packages/fxa-event-broker/src: pubsub-proxy/
    a new token for each delivery, and another delivery    pubsub-proxy.controller.ts (proxyMessage, generateSET);
    after any answer but 200, 201, 202 and 204             its answer is that of a push, which Google then repeats
                                                           (cloud.google.com/pubsub/docs/push)
    claims: aud, events, iat (with fractions), jti         packages/fxa-event-broker/src/jwtset/jwtset.service.ts
    (a UUID), sub; ``iss`` with a slash at its end         and set.interface.ts; mozilla/fxa-jwtool index.js (signSync)
    header: alg, kid, and no ``typ``                       mozilla/fxa-jwtool index.js (PrivateJWK.signSync):
                                                           ``jku`` only if the key has it, which FxA's lack (keys.ts)
    a changed password or a deleted account ends the       oauth/db/index.js (removePublicAndCanGrantTokens,
    account's stored tokens                                removeUser); JWTs of 6 hours or less live on

Where it differs on purpose:

    - a token is minted by a control, not by a grant: no client has to exist, scopes are kept as ordered (FxA leaves out
      those that others imply), and a JWT may be had for every client (FxA has a list of those that get one)
    - Sync is missing (another ``aud`` for its scope, scoped keys); so are pairwise subjects, which have 32 digits too
    - every client is a public one: of others, FxA keeps the tokens when a password is changed
    - no grandfathering of expired opaque tokens, and no rate limit: FxA's is in front of it, and a fault with
      status 429 imitates it

Controls, for local runs and tests only:
    POST   /local/token    a ``TokenOrder``, every member optional -> {"token"}
    POST   /local/rotate   the next key signs from now on -> {"kid"}
    POST   /local/events   an ``EventOrder`` -> {"status"}: of the first delivery to ``--events-url``; null: no answer
    POST   /local/faults   a ``Fault``; replaces that of the same endpoint
    DELETE /local/faults   no endpoint misbehaves
    GET    /local/calls    {"jwks", "verify", "most_at_once", "deliveries": [status, ...]}

Run alone: ``python -m services.local.fxa --port 8082 --keys DIR``. It must listen on loopback only: whoever reaches
it can be anybody.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import aiohttp
import click
import msgspec
from aiohttp import web
from jose import jws, jwt
from jose.exceptions import JOSEError

from services.local.faults import Faults, answer_probe, read
from services.local.fxa_keys import KeyRing
from shared.domain.tokens import encode_segment
from shared.service import background

DESKTOP_CLIENT_ID = "5882386c6d801776"
DEFAULT_SCOPES = ("profile:uid",)
DEFAULT_TTL = 6 * 3600
#: FxA's message for each of its error numbers.
ERRORS = {
    108: "Invalid token",
    109: "Invalid request parameter",
    113: "Content-Type must be either application/json or application/x-www-form-urlencoded",
    115: "Expired token",
    999: "Invalid request payload JSON format",
}
ERROR_INFO = "https://mozilla.github.io/ecosystem-platform/api#section/Response-format"
#: FxA stores no JWT with a life of that many seconds or fewer.
SHORT_LIFE = 6 * 3600
MAX_JWT_CHARACTERS = 1024
#: Seconds to the second delivery of an event, and the most between two.
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0

_OPAQUE = re.compile(r"[0-9a-f]{64}")
_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")

Kind = Literal["jwt", "opaque"]


class TokenOrder(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The content of a token to be minted."""

    uid: str = msgspec.field(default_factory=lambda: secrets.token_hex(16))
    scopes: tuple[str, ...] = DEFAULT_SCOPES
    client_id: str = DESKTOP_CLIENT_ID
    kind: Kind = "jwt"
    ttl: float = DEFAULT_TTL
    #: The audience of a JWT beside its client (RFC 8707).
    resource: str | None = None


class EventOrder(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """An event of an account, and the relying party that receives it."""

    uid: str
    event: Literal["password-change", "delete-user", "profile-change", "subscription-state-change"] = "password-change"
    client_id: str = DESKTOP_CLIENT_ID


@dataclass(frozen=True, slots=True)
class _Grant:
    order: TokenOrder
    expires_at: float


class StandIn:
    """The server's state; ``app`` serves it.

    :param events_url: where a relying party takes events.
    """

    def __init__(
        self, issuer: str, ring: KeyRing, *, events_url: str = "", clock: Callable[[], float] = time.time
    ) -> None:
        self.issuer, self.ring = issuer, ring
        self.faults = Faults(lambda fault: web.Response(status=fault.status, headers=fault.headers))
        self.events_url = events_url
        #: The status of each delivery of events; None where there was no answer.
        self.deliveries: list[int | None] = []
        self._clock = clock
        #: When an account last changed its password and its profile, in milliseconds; all others did when this began.
        self._changes: dict[str, int] = {}
        self._began_at = int(clock() * 1000)
        self._deliveries: set[asyncio.Task[None]] = set()
        #: What FxA stores, by the opaque token or the ``jti`` of a JWT.
        self._stored: dict[str, _Grant] = {}

    def mint(self, order: TokenOrder) -> str:
        """A token as FxA would make it."""
        grant = _Grant(order, self._clock() + order.ttl)
        if order.kind == "opaque":
            token = secrets.token_hex(32)
            self._stored[token] = grant
            return token
        claims = self.claims(order)
        if order.ttl > SHORT_LIFE:
            self._stored[claims["jti"]] = grant
        return self.sign(claims)

    def claims(self, order: TokenOrder) -> dict[str, Any]:
        now = int(self._clock())
        return {
            "aud": [order.client_id, order.resource] if order.resource else order.client_id,
            "client_id": order.client_id,
            "exp": now + int(order.ttl),
            "iat": now,
            "iss": self.issuer,
            "jti": secrets.token_hex(32),
            "scope": " ".join(order.scopes),
            "sub": order.uid,
            "fxa-generation": self._changed_at(order.uid),
            "fxa-profileChangedAt": self._changed_at(order.uid),
        }

    def _changed_at(self, uid: str) -> int:
        return self._changes.get(uid, self._began_at)

    def sign(self, claims: dict[str, Any], header: dict[str, Any] | None = None) -> str:
        """A JWT of any claims, signed by the current key; ``header`` adds to the header or changes it."""
        key = self.ring.signing
        headers = {"typ": "at+JWT", "kid": key.kid, **(header or {})}
        return str(jwt.encode(claims, key.private, algorithm="RS256", headers=headers))

    def security_event(self, order: EventOrder, **claims: Any) -> str:
        """A token that tells of an event, made for one delivery; ``claims`` change its claims."""
        details: dict[str, dict[str, Any]] = {
            "password-change": {"changeTime": self._changed_at(order.uid)},
            "profile-change": {"email": "somebody@example.com"},
            "subscription-state-change": {
                "capabilities": ["one"],
                "changeTime": int(self._clock() * 1000),
                "isActive": True,
            },
        }
        made = {
            "aud": order.client_id,
            "events": {f"https://schemas.accounts.firefox.com/event/{order.event}": details.get(order.event, {})},
            "iat": self._clock(),
            "jti": str(uuid.uuid4()),
            "sub": order.uid,
            "iss": f"{self.issuer}/",
            **claims,
        }
        return self.sign_event(made)

    def sign_event(self, claims: dict[str, Any], header: dict[str, Any] | None = None) -> str:
        """A JWS of any claims with the header of events, which has no ``typ``; ``header`` adds to it or changes it."""
        key = self.ring.signing
        headers = {"alg": "RS256", "kid": key.kid, **(header or {})}
        signed = ".".join(encode_segment(msgspec.json.encode(part)) for part in (headers, claims))
        return f"{signed}.{encode_segment(key.private.sign(signed.encode()))}"

    async def happen(self, order: EventOrder) -> int | None:
        """Change the account, and deliver the event until the relying party has taken it.

        :returns: the status of the first delivery; None if there was no answer.
        """
        if order.event in ("password-change", "delete-user"):
            self._changes[order.uid] = int(self._clock() * 1000)
            for name in [name for name, grant in self._stored.items() if grant.order.uid == order.uid]:
                del self._stored[name]
        status = await self._deliver(order)
        if not _is_taken(status):
            task = asyncio.create_task(self._deliver_again(order))
            self._deliveries.add(task)
            task.add_done_callback(self._deliveries.discard)
        return status

    async def _deliver(self, order: EventOrder) -> int | None:
        headers = {"Authorization": f"Bearer {self.security_event(order)}"}
        status = None
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as session,
                session.post(self.events_url, headers=headers) as response,
            ):
                status = response.status
        except (aiohttp.ClientError, TimeoutError):
            pass
        self.deliveries.append(status)
        return status

    async def _deliver_again(self, order: EventOrder) -> None:
        pause = FIRST_PAUSE
        while True:
            await asyncio.sleep(pause)
            if _is_taken(await self._deliver(order)):
                return
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _end_deliveries(self, _app: web.Application) -> None:
        await background.end(*self._deliveries)

    def destroy(self, token: str) -> bool:
        """End a token that FxA stores; False for others."""
        claims = self._claims_of(token)
        return self._stored.pop(claims["jti"] if claims else token, None) is not None

    def app(self) -> web.Application:
        """Serve it with ``handler_cancellation=True``, so that a hanging request ends with its client."""
        app = web.Application()
        app.on_shutdown.append(self._end_deliveries)
        app.add_routes(
            [
                *self.faults.routes(
                    {"jwks": web.get("/v1/jwks", self._jwks), "verify": web.post("/v1/verify", self._verify)}
                ),
                web.post("/v1/destroy", self._destroy),
                web.get("/__lbheartbeat__", answer_probe),
                web.post("/local/token", self._token),
                web.post("/local/rotate", self._rotate),
                web.post("/local/events", self._event),
                web.get("/local/calls", self._show_calls),
            ]
        )
        return app

    async def _jwks(self, _request: web.Request) -> web.Response:
        caching = {"Cache-Control": "max-age=10, must-revalidate, public"}
        return web.json_response({"keys": self.ring.published()}, headers=caching)

    async def _verify(self, request: web.Request) -> web.Response:
        token = await _token_of(request)
        claims = self._claims_of(token)
        if claims and claims["exp"] - claims["iat"] <= SHORT_LIFE:
            return web.json_response(
                {
                    "user": claims["sub"],
                    "client_id": claims["client_id"],
                    "scope": claims["scope"].split(),
                    "generation": claims.get("fxa-generation"),
                    "profile_changed_at": claims.get("fxa-profileChangedAt"),
                }
            )
        grant = self._stored.get(claims["jti"] if claims else token)
        if grant is None:
            raise _error(108)
        if grant.expires_at < self._clock():
            expired_at = datetime.fromtimestamp(grant.expires_at, UTC).isoformat(timespec="milliseconds")
            raise _error(115, expiredAt=expired_at.replace("+00:00", "Z"))
        order = grant.order
        return web.json_response(
            {
                "user": order.uid,
                "client_id": order.client_id,
                "scope": list(order.scopes),
                "profile_changed_at": self._changed_at(order.uid),
            }
        )

    def _claims_of(self, token: str) -> dict[str, Any] | None:
        """The claims of a good JWT; None for an opaque token, and for a JWT that is not good."""
        try:
            header = jws.get_unverified_header(token)
            key = self.ring.public_key(str(header.get("kid")))
            if key is None or _media_type(str(header.get("typ"))) != "application/at+jwt":
                return None
            claims: dict[str, Any] = msgspec.json.decode(jws.verify(token, key, algorithms=["RS256"]))
        except (JOSEError, ValueError):
            return None
        return claims if claims["iss"] == self.issuer and claims["exp"] > self._clock() else None

    async def _destroy(self, request: web.Request) -> web.Response:
        if not self.destroy(await _token_of(request)):
            raise _error(108)
        return web.json_response({})

    async def _token(self, request: web.Request) -> web.Response:
        return web.json_response({"token": self.mint(await read(request, TokenOrder))})

    async def _event(self, request: web.Request) -> web.Response:
        if not self.events_url:
            raise web.HTTPConflict(text="it was started without --events-url\n")
        return web.json_response({"status": await self.happen(await read(request, EventOrder))})

    async def _rotate(self, _request: web.Request) -> web.Response:
        self.ring.rotate()
        return web.json_response({"kid": self.ring.signing.kid})

    async def _show_calls(self, _request: web.Request) -> web.Response:
        calls, most = self.faults.calls, self.faults.most_at_once
        counts = {"jwks": calls["jwks"], "verify": calls["verify"], "most_at_once": most["verify"]}
        return web.json_response({**counts, "deliveries": self.deliveries})


async def _token_of(request: web.Request) -> str:
    """The ``token`` of a body, if it has FxA's shape.

    :raises web.HTTPException: as FxA refuses it.
    """
    content_type = request.content_type if "Content-Type" in request.headers else "application/json"
    if content_type == "application/x-www-form-urlencoded":
        body: Any = dict(await request.post())
    elif content_type == "application/json":
        try:
            body = msgspec.json.decode(await request.read() or b"null")
        except ValueError:
            raise _error(999) from None
    else:
        raise _error(113, status=web.HTTPUnsupportedMediaType)
    token = body.get("token") if isinstance(body, dict) else None
    is_jwt = isinstance(token, str) and len(token) <= MAX_JWT_CHARACTERS and _JWT.fullmatch(token)
    if not isinstance(token, str) or not (is_jwt or _OPAQUE.fullmatch(token)):
        raise _error(109, validation={"source": "payload", "keys": ["token"]})
    return token


def _is_taken(status: int | None) -> bool:
    return status in (200, 201, 202, 204)


def _media_type(typ: str) -> str:
    typ = typ.lower()
    return typ if "/" in typ else f"application/{typ}"


def _error(errno: int, *, status: type[web.HTTPException] = web.HTTPBadRequest, **more: Any) -> web.HTTPException:
    body = {
        "code": status.status_code,
        "errno": errno,
        "error": "Bad Request" if status is web.HTTPBadRequest else "Unsupported Media Type",
        "message": ERRORS[errno],
        "info": ERROR_INFO,
        **more,
    }
    return status(text=msgspec.json.encode(body).decode(), content_type="application/json")


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, required=True, help="Port to listen on.")
@click.option("--issuer", help="The `iss` of its JWTs; its own URL when not given.")
@click.option("--keys", type=click.Path(path_type=Path), help="Folder that keeps its keys; none: new ones each time.")
@click.option("--events-url", default="", help="Where events are delivered: auth's /fxa/events.")
def main(host: str, port: int, issuer: str | None, keys: Path | None, events_url: str) -> None:
    """Run the FxA stand-in."""
    stand_in = StandIn(issuer or f"http://{host}:{port}", KeyRing.open(keys), events_url=events_url)
    web.run_app(stand_in.app(), host=host, port=port, handler_cancellation=True, shutdown_timeout=1, print=None)


if __name__ == "__main__":
    main()
