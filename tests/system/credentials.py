"""Every kind of credential that somebody may present, good and bad."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from jose import jwt

from services.auth.tokens.issuer import Issuer
from services.auth.tokens.key_ring import KeyRing
from tests.system.clients import Caller, Seen
from tests.system.harness import SECRETS, System

_COOKIE = re.compile(r"((?:__Host-)?[A-Za-z_]+)=([^;]*)")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Header values of ``Authorization`` by name; ``sessions`` are the ones of ``Cookie``."""

    bearers: dict[str, str | None]
    sessions: dict[str, str]
    blocked_user: str


def sign(system: System, *, age: float = 0, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token signed by auth's own key: ``age`` seconds old, with these claims and header members changed."""
    ring = KeyRing(system.folder / "keys")
    issuer = Issuer(ring, issuer=system.issuer, ttl=300, clock=lambda: time.time() - age)
    user_id = f"{'a' * 32}:ai"
    token = issuer.issue(user_id=user_id, client_id="test", scope="ai", amr="fxa").text
    if not claims and not header:
        return token
    changed = {**jwt.get_unverified_claims(token), **claims}
    headers = {**jwt.get_unverified_header(token), **(header or {})}
    return str(jwt.encode(changed, ring.signing_key().private, algorithm="ES256", headers=headers))


async def gather(caller: Caller) -> Credentials:
    """One of each. Leaves a blocked user and a revoked device behind."""
    system = caller.system
    _, good = await caller.account()
    blocked_user, blocked = await caller.account()
    assert (await caller.block(blocked_user)).status == 200
    _, revoked_token = await caller.account()
    await caller.ask("POST", f"{system.auth_url}/revoke", data={"token": revoked_token})
    device = await caller.enrolled()
    of_device = (await caller.exchange_device(device)).json()["access_token"]
    admin, viewer = await sign_in(caller, "MLPA_ADMIN_KEY"), await sign_in(caller, "MLPA_UI_ACCESS_KEY")
    await revoke_device(caller, device.key_id_b64, admin)
    given = {
        "none": None,
        "junk": "junk",
        "expired": sign(system, age=301),
        "wrong audience": sign(system, aud="mlpa-auth"),
        "wrong issuer": sign(system, iss="https://elsewhere.example"),
        "wrong type": sign(system, header={"typ": "JWT"}),
        "user blocked": blocked,
        "token revoked": revoked_token,
        "device revoked": of_device,
        "viewer key": SECRETS["MLPA_UI_ACCESS_KEY"],
        "admin key": SECRETS["MLPA_ADMIN_KEY"],
        "FxA token": await caller.fxa_token(),
        "opaque FxA token": await caller.fxa_token(kind="opaque"),
        "access token": good,
    }
    bearers = {name: f"Bearer {token}" if token is not None else None for name, token in given.items()}
    return Credentials(bearers, {"admin": admin, "viewer": viewer, "junk": "mlpa_session=junk"}, blocked_user)


async def sign_in(caller: Caller, setting: str) -> str:
    """The cookie of a session of the console."""
    url = f"{caller.system.auth_url}/admin/sign-in"
    cookie = _cookie(await caller.ask("GET", url))
    token = cookie.partition("=")[2]
    form = {"csrf": token, "key": SECRETS[setting]}
    seen = await caller.ask("POST", url, data=form, headers={"Cookie": cookie})
    assert seen.status == 303, seen
    return _cookie(seen)


async def revoke_device(caller: Caller, key_id: str, session: str) -> None:
    """As an operator does it in the console: there is no other way."""
    url = f"{caller.system.auth_url}/admin/devices/{quote(key_id, safe='')}/revoke"
    page = await caller.ask("GET", url, headers={"Cookie": session})
    token = re.search(rb'name="csrf" value="([^"]+)"', page.body)
    assert token, page.body[:500]
    form = {"csrf": token[1].decode()}
    seen = await caller.ask("POST", url, data=form, headers={"Cookie": session})
    assert seen.status == 303, seen


def _cookie(seen: Seen) -> str:
    headers: Any = seen.headers
    for value in headers.getall("Set-Cookie"):
        if (match := _COOKIE.match(value)) and match[2] not in ("", '""'):
            return match[0]
    raise AssertionError("no cookie")
