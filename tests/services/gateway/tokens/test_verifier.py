"""Access tokens at the gateway: ours are taken, everything that another library can forge is not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given, strategies as st
from joserfc import jws as joserfc_jws
from joserfc.jwk import ECKey

from services.auth.tokens.issuer import Issuer
from services.auth.tokens.key_ring import KeyRing, create_key
from services.gateway.errors import InvalidToken
from services.gateway.tokens.keyset import key_set
from services.gateway.tokens.verifier import TokenVerifier
from shared.errors import DependencyUnavailable
from shared.service.keyset import KeySet
from shared.telemetry.metrics import Registry
from tests.support.clock import Clock
from tests.support.exposition import metric
from tests.support.service_types import development

ISSUER = "http://auth.test"
USER = "0123456789abcdef0123456789abcdef:ai"


@dataclass
class AuthDouble:
    """The key set endpoint of auth, which counts, and can fail."""

    ring: KeyRing
    fetches: int = 0
    status: int = 200
    body: Any = None

    async def jwks(self, _request: web.Request) -> web.Response:
        self.fetches += 1
        if isinstance(self.body, bytes):
            return web.Response(body=self.body, status=self.status)
        return web.json_response(self.ring.jwks() if self.body is None else self.body, status=self.status)

    async def metadata(self, request: web.Request) -> web.Response:
        return web.json_response({"issuer": f"http://{request.host}", "jwks_uri": f"http://{request.host}/jwks"})


@dataclass
class Rig:
    auth: AuthDouble
    keys: KeySet
    verifier: TokenVerifier
    clock: Clock
    folder: Path
    registry: Registry

    def issue(self, user: str = USER, scope: str = "ai", ttl: int = 300, issuer: str = ISSUER) -> str:
        made = Issuer(self.auth.ring, issuer=issuer, ttl=ttl, clock=self.clock)
        return made.issue(user_id=user, client_id="client", scope=scope, amr="fxa").text

    @property
    def private(self) -> ECKey:
        return ECKey.import_key(self.auth.ring.signing_key().path.read_bytes())

    def forge(
        self, header: dict[str, Any] | None = None, key: Any = None, raw: bytes | None = None, **claims: Any
    ) -> str:
        """A token as ours but for the changes; None removes a member."""
        now = int(self.clock())
        whole_header = {"alg": "ES256", "typ": "at+jwt", "kid": self.auth.ring.signing_key().kid, **(header or {})}
        whole_claims = {
            "iss": ISSUER,
            "aud": "mlpa-gateway",
            "sub": USER,
            "client_id": "client",
            "iat": now,
            "exp": now + 300,
            "jti": "j" * 32,
            "scope": "ai",
            "amr": ["fxa"],
            **claims,
        }
        payload = raw or json.dumps({name: value for name, value in whole_claims.items() if value is not None}).encode()
        protected = {name: value for name, value in whole_header.items() if value is not None}
        registry = joserfc_jws.JWSRegistry(algorithms=["ES256", "HS256", "none"], strict_check_header=False)
        return joserfc_jws.serialize_compact(protected, payload, key or self.private, registry=registry)


@asynccontextmanager
async def a_rig(tmp_path: Path, **options: Any) -> AsyncIterator[Rig]:
    create_key(tmp_path, activate_at=0)
    auth = AuthDouble(KeyRing(tmp_path))
    app = web.Application()
    app.router.add_get("/jwks", auth.jwks)
    app.router.add_get("/.well-known/oauth-authorization-server", auth.metadata)
    async with AsyncExitStack() as stack:
        server = TestServer(app)
        await server.start_server()
        stack.push_async_callback(server.close)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        clock, registry = Clock(), Registry()
        url = str(server.make_url("")).rstrip("/")
        keys = key_set(session, registry, clock=clock, **{"issuer": url, "jwks_url": None, **options})
        verifier = TokenVerifier(keys, development(), registry, issuer=ISSUER, clock=clock)
        yield Rig(auth, keys, verifier, clock, tmp_path, registry)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with a_rig(tmp_path) as made:
        yield made


async def test_a_token_of_ours_names_its_bearer(rig: Rig) -> None:
    principal = await rig.verifier.verify(rig.issue())
    assert (principal.user_id, principal.service_type.name) == (USER, "ai")
    assert principal.expires_at == int(rig.clock()) + 300


async def test_the_second_check_of_a_token_costs_no_signature(rig: Rig) -> None:
    token = rig.issue()
    first = await rig.verifier.verify(token)
    assert await rig.verifier.verify(token) is first
    answers = "token_validation_latency_seconds_count"
    assert metric(rig.registry, answers, result="success", source="local") == 1
    assert metric(rig.registry, answers, result="success", source="cache") == 1


def unsigned(rig: Rig, alg: str) -> str:
    header, payload, _ = rig.issue().split(".")
    changed = json.loads(base64.urlsafe_b64decode(header + "==")) | {"alg": alg}
    return base64.urlsafe_b64encode(json.dumps(changed).encode()).decode().rstrip("=") + f".{payload}."


def symmetric(rig: Rig, secret: bytes) -> str:
    """What a verifier takes that believes the header's algorithm, and uses the public key as a secret."""
    signed = unsigned(rig, "HS256").rstrip(".")
    mac = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    return f"{signed}." + base64.urlsafe_b64encode(mac).decode().rstrip("=")


FORGERIES: dict[str, Callable[[Rig], str]] = {
    "alg none": lambda rig: unsigned(rig, "none"),
    "alg None": lambda rig: unsigned(rig, "None"),
    "HS256 with the public key as PEM": lambda rig: symmetric(rig, rig.private.as_pem(private=False)),
    "HS256 with the public key as DER": lambda rig: symmetric(rig, rig.private.as_der(private=False)),
    "HS256 with the public key as JSON": lambda rig: symmetric(
        rig, json.dumps(rig.auth.ring.jwks()["keys"][0]).encode()
    ),
    "HS256 with an empty key": lambda rig: symmetric(rig, b""),
    "another key under our kid": lambda rig: rig.forge(key=ECKey.generate_key("P-256")),
    "unknown kid": lambda rig: rig.forge({"kid": "x"}),
    "no kid": lambda rig: rig.forge({"kid": None}),
    "typ JWT": lambda rig: rig.forge({"typ": "JWT"}),
    "no typ": lambda rig: rig.forge({"typ": None}),
    "embedded jwk": lambda rig: rig.forge({"jwk": rig.private.as_dict(private=False)}),
    "jku": lambda rig: rig.forge({"jku": "http://evil.test/jwks"}),
    "x5u": lambda rig: rig.forge({"x5u": "http://evil.test/cert"}),
    "another issuer": lambda rig: rig.forge(iss="http://evil.test"),
    "issuer with a slash": lambda rig: rig.forge(iss=ISSUER + "/"),
    "another audience": lambda rig: rig.forge(aud="other"),
    "a list of audiences": lambda rig: rig.forge(aud=["mlpa-gateway", "other"]),
    "no audience": lambda rig: rig.forge(aud=None),
    "no exp": lambda rig: rig.forge(exp=None),
    "expired": lambda rig: rig.forge(exp=int(rig.clock()) - 1),
    "exp as text": lambda rig: rig.forge(exp="9999999999"),
    "no iat": lambda rig: rig.forge(iat=None),
    "from the future": lambda rig: rig.forge(iat=int(rig.clock()) + 100),
    "living too long": lambda rig: rig.forge(exp=int(rig.clock()) + 100_000),
    "no jti": lambda rig: rig.forge(jti=None),
    "empty jti": lambda rig: rig.forge(jti=""),
    "no sub": lambda rig: rig.forge(sub=None),
    "a sub of another service type": lambda rig: rig.forge(sub=USER.replace(":ai", ":s2s")),
    "a sub that is no user": lambda rig: rig.forge(sub="admin:ai"),
    "unknown service type": lambda rig: rig.forge(scope="nope", sub=USER.replace(":ai", ":nope")),
    "a claim twice": lambda rig: rig.forge(
        raw=b'{"iss":"http://auth.test","iss":"http://auth.test","aud":"mlpa-gateway","sub":"%s","client_id":"c",'
        b'"iat":%d,"exp":%d,"jti":"j","scope":"ai","amr":["fxa"]}'
        % (USER.encode(), int(rig.clock()), int(rig.clock()) + 100)
    ),
    "claims that are no object": lambda rig: rig.forge(raw=b"[]"),
    "a megabyte": lambda rig: rig.forge(client_id="x" * 1_000_000),
    "empty": lambda rig: "",
    "dots": lambda rig: "..",
    "not ASCII": lambda rig: "\u00e9.\u00e9.\u00e9",
    "truncated signature": lambda rig: rig.issue()[:-4],
    "two signatures": lambda rig: rig.issue() + ".x",
    "a character that is no base64url in the signature": lambda rig: rig.issue()[:-10] + "!" + rig.issue()[-10:],
    "padding after the signature": lambda rig: rig.issue() + "==",
    "bits after the signature": lambda rig: with_other_last_bits(rig.issue()),
    "a deeply nested header": lambda rig: (
        base64.urlsafe_b64encode(b"[" * 1200).decode().rstrip("=") + f".e30.{'A' * 86}"
    ),
    "DER signature": lambda rig: der_signed(rig),
}


def with_other_last_bits(token: str) -> str:
    """The same signature, spelled otherwise: a lenient reader doesn't look at the last four bits."""
    return token[:-1] + chr(ord(token[-1]) + 1)


def der_signed(rig: Rig) -> str:
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    head, payload, signature = rig.issue().split(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    return f"{head}.{payload}." + base64.urlsafe_b64encode(der).decode().rstrip("=")


@pytest.mark.parametrize("name", FORGERIES)
async def test_every_forgery_is_an_invalid_token(rig: Rig, name: str) -> None:
    await rig.keys.refresh()
    with pytest.raises(InvalidToken):
        await rig.verifier.verify(FORGERIES[name](rig))


async def test_the_forgers_tool_can_make_a_good_token(rig: Rig) -> None:
    assert (await rig.verifier.verify(rig.forge())).user_id == USER


@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda raw: raw.decode("latin-1")))
async def test_no_text_is_anything_but_an_invalid_token(text: str) -> None:
    class NoKeys:
        async def get(self, kid: str) -> None:
            return None

    verifier = TokenVerifier(NoKeys(), development(), Registry(), issuer=ISSUER)  # type: ignore[arg-type]
    with pytest.raises(InvalidToken):
        await verifier.verify(text)


async def test_a_remembered_token_ends_with_its_exp(rig: Rig) -> None:
    token = rig.issue(ttl=300)
    await rig.verifier.verify(token)
    rig.clock.now += 299
    await rig.verifier.verify(token)
    rig.clock.now += 2
    with pytest.raises(InvalidToken):
        await rig.verifier.verify(token)


async def test_a_key_that_leaves_the_set_takes_its_tokens_along(rig: Rig) -> None:
    token = rig.issue()
    await rig.verifier.verify(token)
    old = rig.auth.ring.signing_key().path
    create_key(rig.folder, activate_at=1)
    old.unlink()
    rig.auth.ring.refresh()
    await rig.keys.refresh()
    with pytest.raises(InvalidToken):
        await rig.verifier.verify(token)


async def test_a_key_that_is_replaced_under_its_kid_takes_its_tokens_along(rig: Rig) -> None:
    token = rig.issue()
    await rig.verifier.verify(token)
    (published,) = rig.auth.ring.jwks()["keys"]
    other = ECKey.generate_key("P-256").as_dict(private=False)
    rig.auth.body = {"keys": [published | {"x": other["x"], "y": other["y"]}]}
    await rig.keys.refresh()
    with pytest.raises(InvalidToken):
        await rig.verifier.verify(token)


async def test_a_key_set_that_cannot_be_read_again_is_kept_for_a_day_at_most(rig: Rig) -> None:
    await rig.verifier.verify(rig.issue())
    rig.auth.status = 503
    rig.clock.now += 24 * 3600
    assert rig.keys.loaded
    token = rig.issue()
    assert (await rig.verifier.verify(token)).user_id == USER
    rig.clock.now += 1
    assert not rig.keys.loaded
    for known in (token, rig.issue()):
        with pytest.raises(DependencyUnavailable):
            await rig.verifier.verify(known)
    rig.auth.status = 200
    rig.clock.now += 6
    assert (await rig.verifier.verify(token)).user_id == USER


async def test_a_reading_that_changes_nothing_forgets_nothing(rig: Rig) -> None:
    token = rig.issue()
    first = await rig.verifier.verify(token)
    create_key(rig.folder, activate_at=1)
    rig.auth.ring.refresh()
    await rig.keys.refresh()
    assert await rig.verifier.verify(token) is first


BROKEN_SETS: list[Any] = [
    {"keys": [{"kty": "RSA", "kid": "x"}]},
    {"keys": [{"kty": "EC", "crv": "P-256", "kid": "x", "x": "AA", "y": "AA"}]},
]


@pytest.mark.parametrize("body", BROKEN_SETS)
async def test_a_broken_key_set_never_replaces_a_good_one(rig: Rig, body: Any) -> None:
    await rig.keys.refresh()
    rig.auth.body = body
    await rig.keys.refresh()
    assert (await rig.verifier.verify(rig.issue())).user_id == USER


async def test_without_auth_known_keys_go_on_and_unknown_ones_could_not_be_checked(rig: Rig) -> None:
    await rig.keys.refresh()
    rig.auth.status = 500
    rig.clock.now += 100
    assert (await rig.verifier.verify(rig.issue())).user_id == USER
    with pytest.raises(DependencyUnavailable):
        await rig.verifier.verify(rig.forge({"kid": "new"}))


async def test_metadata_of_another_issuer_is_not_followed(tmp_path: Path, unused_port: int) -> None:
    async with a_rig(tmp_path, issuer=f"http://127.0.0.1:{unused_port}") as made:
        await made.keys.refresh()
        assert not made.keys.loaded
        with pytest.raises(DependencyUnavailable):
            await made.verifier.verify(made.issue())


INSTALL = "2f1a6c1e-8d0b-4f57-9f0c-3b6f1f3c9a10:ai"


async def test_a_token_for_an_install_may_live_a_day_and_is_remembered_no_longer(rig: Rig) -> None:
    token = rig.forge(sub=INSTALL, amr=["play"], exp=int(rig.clock()) + 86400)
    assert (await rig.verifier.verify(token)).user_id == INSTALL
    rig.clock.now += 86399
    assert (await rig.verifier.verify(token)).user_id == INSTALL
    rig.clock.now += 1
    with pytest.raises(InvalidToken):
        await rig.verifier.verify(token)


@pytest.mark.parametrize(
    ("amr", "seconds"),
    [
        (["play"], 86400 + 31),
        (["fxa"], 3600 + 31),
        (["play", "fxa"], 3600 + 31),
        ([], 3600 + 31),
        (["Play"], 3600 + 31),
    ],
)
async def test_no_token_lives_longer_than_its_kind_may(rig: Rig, amr: list[str], seconds: int) -> None:
    good = rig.forge(sub=INSTALL, amr=amr, exp=int(rig.clock()) + seconds - 1)
    assert (await rig.verifier.verify(good)).user_id == INSTALL
    with pytest.raises(InvalidToken):
        await rig.verifier.verify(rig.forge(sub=INSTALL, amr=amr, exp=int(rig.clock()) + seconds))
