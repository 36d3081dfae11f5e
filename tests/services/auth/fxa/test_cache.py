"""The cache in Redis: its entries, their life, and that nothing else is believed."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable

import msgspec
import pytest

from services.auth.fxa.cache import MAC_BYTES, Cache, _Verified
from services.auth.fxa.errors import InvalidFxAToken
from services.auth.fxa.metrics import FxAMetrics
from services.auth.fxa.models import FxAIdentity
from services.local.faults import Fault
from services.local.valkey import ValkeyServer
from shared.errors import DependencyUnavailable
from shared.stores.redis import Client
from shared.telemetry.metrics import Registry
from tests.services.auth.fxa.harness import ISSUER, SECRET, UID, Rig
from tests.support.exposition import metric

TOKEN = "f" * 64
IDENTITY = FxAIdentity(UID, "5882386c6d801776", ("profile:uid",), None, "remote")


@pytest.fixture
def cache(rig: Rig, redis: Client) -> Cache:
    return Cache(redis, rig.config, clock=rig.clock, metrics=FxAMetrics(Registry()))


def name_of(token: str) -> str:
    return "mlpa:fxa:v1:" + hmac.new(SECRET, (ISSUER + token).encode(), "sha256").hexdigest()


async def test_a_tokens_name_is_an_hmac_and_nothing_in_redis_tells_the_token(rig: Rig, redis: Client) -> None:
    async with rig.verifier() as verifier:
        tokens = [rig.opaque(), rig.jwt()]
        for token in tokens:
            await verifier.verify(token)
        names = [key.decode() for key in await redis.keys("*")]
        assert {name_of(token) for token in tokens} <= set(names)
        for name in names:
            assert UID not in name
            value = await redis.get(name) if name.startswith("mlpa:fxa:v1:") else b""
            assert not any(token[:20].encode() in value for token in tokens)


async def test_a_remembered_verification_costs_one_round_trip(rig: Rig, redis: Client) -> None:
    async with rig.verifier() as verifier:
        for token in (rig.opaque(), rig.jwt()):
            await verifier.verify(token)
            await verifier.verify(token)
            before = (await redis.info("stats"))["total_commands_processed"]
            assert (await verifier.verify(token)).source == "cache"
            assert (await redis.info("stats"))["total_commands_processed"] - before == 2  # its GET, and the INFO


@pytest.mark.parametrize(
    ("order", "changes", "longest"),
    [
        ({"kind": "jwt"}, {}, 300),
        ({"kind": "jwt"}, {"cache_ttl": 20}, 20),
        ({"kind": "jwt", "ttl": 100}, {}, 70),
        ({"kind": "opaque"}, {}, 60),
        ({"kind": "opaque"}, {"cache_ttl": 20}, 20),
        (None, {}, 30),
        (None, {"cache_ttl": 20}, 20),
    ],
    ids=str,
)
async def test_how_long_each_is_remembered(
    rig: Rig, redis: Client, order: dict[str, object] | None, changes: dict[str, object], longest: float
) -> None:
    async with rig.verifier(**changes) as verifier:
        token = TOKEN if order is None else (rig.jwt if order["kind"] == "jwt" else rig.opaque)(**order)
        try:
            await verifier.verify(token)
        except InvalidFxAToken:
            assert order is None
        seconds = await redis.pttl(name_of(token)) / 1000
        assert longest * 0.88 < seconds <= longest


@pytest.mark.parametrize("kind", ["jwt", "opaque"])
async def test_with_a_time_of_zero_nothing_is_remembered(rig: Rig, redis: Client, kind: str) -> None:
    async with rig.verifier(cache_ttl=0) as verifier:
        token = rig.jwt() if kind == "jwt" else rig.opaque()
        for _ in range(2):
            assert (await verifier.verify(token)).source != "cache"
        with pytest.raises(InvalidFxAToken):
            await verifier.verify(TOKEN)
        assert await redis.keys("mlpa:fxa:v1:*") == []


async def test_entries_made_together_do_not_end_together(cache: Cache, redis: Client) -> None:
    keys = [cache.key(f"{number:064x}") for number in range(50)]
    for key in keys:
        await cache.put(key, IDENTITY)
    assert len({await redis.pttl(key.name) // 100 for key in keys}) > 10


async def test_a_token_about_to_expire_is_not_remembered(rig: Rig, redis: Client) -> None:
    async with rig.verifier() as verifier:
        assert (await verifier.verify(rig.jwt(ttl=29))).source == "local"
        assert await redis.keys("mlpa:fxa:v1:*") == []


async def test_an_entry_is_not_believed_beyond_its_time_though_redis_kept_it(
    rig: Rig, cache: Cache, redis: Client
) -> None:
    key = cache.key(TOKEN)
    await cache.put(key, IDENTITY)
    await redis.persist(key.name)
    assert await cache.get(key) == IDENTITY.found_in("cache")
    rig.clock.now += 60
    assert await cache.get(key) is None


async def test_a_token_that_expires_while_it_is_remembered_is_not_found(rig: Rig, cache: Cache, redis: Client) -> None:
    key = cache.key(TOKEN)
    now = rig.clock()
    await redis.set(key.name, cache._seal(key, _Verified(now + 300, UID, "abc", (), now + 10, now, None)))
    rig.clock.now += 9
    assert await cache.get(key) is not None
    rig.clock.now += 1
    assert await cache.get(key) is None


async def test_only_refusals_that_last_are_remembered(cache: Cache) -> None:
    key = cache.key(TOKEN)
    await cache.put(key, InvalidFxAToken("unknown key id"))
    assert await cache.get(key) is None
    await cache.put(key, InvalidFxAToken("revoked", source="remote", lasting=True))
    found = await cache.get(key)
    assert isinstance(found, InvalidFxAToken)
    assert (found.reason, found.source) == ("revoked", "cache")


def _sealed(cache: Cache, payload: bytes) -> bytes:
    """An entry as the owner of the secret would write it."""
    return cache._mac(cache.key(TOKEN), payload) + payload


POISON: dict[str, Callable[[Cache, bytes, bytes], bytes]] = {
    "empty": lambda cache, good, other: b"",
    "short": lambda cache, good, other: good[: MAC_BYTES - 1],
    "no payload": lambda cache, good, other: good[:MAC_BYTES],
    "another MAC": lambda cache, good, other: bytes(MAC_BYTES) + good[MAC_BYTES:],
    "one bit": lambda cache, good, other: good[:-1] + bytes([good[-1] ^ 1]),
    "longer": lambda cache, good, other: good + b"x",
    "another token's": lambda cache, good, other: other,
    "text": lambda cache, good, other: b'{"uid":"0123456789abcdef0123456789abcdef"}',
    "sealed junk": lambda cache, good, other: _sealed(cache, b"\xc1"),
    "sealed nothing": lambda cache, good, other: _sealed(cache, b""),
    "sealed depth": lambda cache, good, other: _sealed(cache, b"\x91" * 5000),
    "sealed, not text": lambda cache, good, other: _sealed(cache, b"\x93\xa1r\x00\xa1\xff"),
    "sealed of another version": lambda cache, good, other: _sealed(cache, b"\x92\xa1w\x01"),
    "sealed, a field more": lambda cache, good, other: _sealed(
        cache, b"\x94\xa1r\xcbA\xff\xff\xff\xff\xff\xff\xff\xa1x\x01"
    ),
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
async def test_a_poisoned_entry_is_none_and_is_replaced(
    rig: Rig, cache: Cache, redis: Client, poison: Callable[[Cache, bytes, bytes], bytes]
) -> None:
    token = rig.opaque()
    async with rig.verifier() as verifier:
        await verifier.verify(token)
        await cache.put(cache.key(TOKEN), msgspec.structs.replace(IDENTITY, uid="f" * 32))
        good, other = await redis.get(name_of(token)), await redis.get(name_of(TOKEN))
        await redis.set(name_of(token), poison(cache, good, other))
        identity = await verifier.verify(token)
        assert (identity.uid, identity.source) == (UID, "remote")
        assert (await verifier.verify(token)).source == "cache"


async def test_what_is_not_even_a_string_is_no_entry(rig: Rig, redis: Client) -> None:
    token = rig.opaque()
    await redis.rpush(name_of(token), "x")
    async with rig.verifier() as verifier:
        assert (await verifier.verify(token)).source == "remote"
        assert (await verifier.verify(token)).source == "cache"


async def test_an_entry_of_another_secret_is_none(rig: Rig) -> None:
    token = rig.opaque()
    async with rig.verifier(cache_secret=b"another") as other, rig.verifier() as verifier:
        await other.verify(token)
        assert (await verifier.verify(token)).source == "remote"


async def test_whose_turn_it_is_sees_what_was_stored_since_it_looked(cache: Cache) -> None:
    key = cache.key(TOKEN)
    assert await cache.get(key) is None
    await cache.put(key, IDENTITY)  # by another process, which has let go since
    async with cache.turn(key) as found:
        assert found == IDENTITY.found_in("cache")


async def test_a_lock_that_another_process_took_over_is_not_let_go(cache: Cache, redis: Client) -> None:
    key = cache.key(TOKEN)
    async with cache.turn(key) as found:
        assert found is None
        assert 1000 < await redis.pttl(key.lock) <= 2000
        await redis.set(key.lock, "another")
    assert await redis.get(key.lock) == b"another"


async def test_a_purge_drops_all_tokens_of_that_user_and_no_others(rig: Rig, redis: Client) -> None:
    async with rig.verifier() as verifier, rig.verifier() as elsewhere:
        mine = [rig.opaque(), rig.opaque(), rig.jwt()]
        others = rig.opaque(uid="f" * 32)
        for token in [*mine, others]:
            await verifier.verify(token)
        assert await elsewhere._cache.purge(UID) == 3
        assert [(await verifier.verify(token)).source for token in mine] == ["remote", "remote", "local"]
        assert (await verifier.verify(others)).source == "cache"
        assert await elsewhere._cache.purge("e" * 32) == 0


async def test_a_purge_also_reaches_what_is_being_verified(rig: Rig) -> None:
    rig.fxa.faults.set(Fault("verify", latency=0.1))
    async with rig.verifier() as verifier:
        token = rig.opaque()
        asked = asyncio.create_task(verifier.verify(token))
        await rig.until_called("verify")
        await verifier._cache.purge(UID)
        assert (await asked).source == "remote"
        assert (await verifier.verify(token)).source == "remote"


async def test_the_index_of_a_user_keeps_no_entries_that_ended(rig: Rig, cache: Cache, redis: Client) -> None:
    for number in range(50):
        await cache.put(cache.key(f"{number:064x}"), IDENTITY)
        rig.clock.now += 10
    [index] = await redis.keys("mlpa:fxa:uid:*")
    assert await redis.zcard(index) <= 7
    assert 0 < await redis.ttl(index) <= 330


async def test_without_redis_tokens_are_verified_directly_and_purge_says_so(rig: Rig, own_valkey: ValkeyServer) -> None:
    rig.redis_url = own_valkey.url
    registry = Registry()
    async with rig.verifier(registry) as verifier:
        opaque, jwt = rig.opaque(), rig.jwt()
        await verifier.verify(opaque)
        own_valkey.kill()
        for _ in range(3):
            assert (await verifier.verify(opaque)).source == "remote"
            assert (await verifier.verify(jwt)).source == "local"
        with pytest.raises(InvalidFxAToken):
            await verifier.verify(TOKEN)
        with pytest.raises(DependencyUnavailable) as caught:
            await verifier._cache.purge(UID)
        assert caught.value.dependency == "redis"
        assert metric(registry, "fxa_cache_failures_total", reason="open") > 0

        own_valkey.start()
        rig.clock.now += 1
        assert (await verifier.verify(jwt)).source == "local"
        assert (await verifier.verify(jwt)).source == "cache"


async def test_a_redis_that_hangs_slows_nobody_for_long(rig: Rig, own_valkey: ValkeyServer) -> None:
    rig.redis_url = own_valkey.url
    async with rig.verifier(cache_timeout=0.1) as verifier:
        await verifier.verify(rig.jwt())
        own_valkey.pause()
        try:
            started = time.monotonic()
            for _ in range(50):
                assert (await verifier.verify(rig.jwt())).source == "local"
                assert (await verifier.verify(rig.opaque())).source == "remote"
            assert time.monotonic() - started < 2
            # Many at once, all before anybody knows
            rig.clock.now += 2
            started = time.monotonic()
            await asyncio.gather(*(verifier.verify(rig.jwt()) for _ in range(50)))
            assert time.monotonic() - started < 2
        finally:
            own_valkey.resume()
