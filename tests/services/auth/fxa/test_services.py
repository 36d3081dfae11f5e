"""Verification as a whole: the requests to FxA, their number, and answers that are shared or cached."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import msgspec
import pytest

from services.auth.fxa import policy
from services.auth.fxa.errors import ClientNotAllowed, InvalidFxAToken, ScopeNotAllowed
from services.auth.fxa.metrics import FxAMetrics
from services.auth.fxa.services import FxAVerifier
from services.local.faults import Fault
from services.local.fxa import TokenOrder
from services.local.valkey import ValkeyServer
from shared.errors import DependencyUnavailable
from shared.service.health import CheckFailed
from shared.stores.redis import connect
from shared.telemetry.metrics import Registry
from tests.services.auth.fxa.harness import ISSUER, UID, Rig
from tests.support.exposition import metric
from tests.support.service_types import service_type
from tests.support.valkey_cluster import ValkeyCluster

FULL = bool(os.environ.get("MLPA_TEST_FULL"))
OUTAGE = Fault("verify", "respond", status=503)
JWKS_OUTAGE = Fault("jwks", "respond", status=503)


async def test_each_answer_is_counted_where_it_came_from(rig: Rig) -> None:
    registry = Registry()
    async with rig.verifier(registry) as verifier:
        opaque, jwt = rig.opaque(), rig.jwt()
        sources = [(await verifier.verify(token)).source for token in (jwt, jwt, opaque, opaque, opaque)]
        assert sources == ["local", "cache", "remote", "cache", "cache"]
        for token in ("junk", "f" * 64, "f" * 64):
            with pytest.raises(InvalidFxAToken):
                await verifier.verify(token)
        rig.fxa.faults.set(OUTAGE)
        with pytest.raises(DependencyUnavailable):
            await verifier.verify("e" * 64)

    def counted(source: str) -> float:
        return metric(registry, "fxa_verifications_total", verification_source=source)

    def timed(result: str, source: str) -> float:
        labels = {"result": result, "verification_source": source}
        return metric(registry, "validate_fxa_latency_seconds_count", **labels)

    assert (counted("local"), counted("remote"), counted("cache")) == (2, 2, 4)
    assert (timed("success", "local"), timed("success", "remote"), timed("success", "cache")) == (1, 1, 3)
    assert (timed("invalid", "local"), timed("invalid", "remote"), timed("invalid", "cache")) == (1, 1, 1)
    assert timed("unavailable", "remote") == 1


def test_all_series_are_there_from_the_start() -> None:
    registry = Registry()
    FxAMetrics(registry)
    text = registry.render().decode()
    for source in ("cache", "local", "remote"):
        assert f'fxa_verifications_total{{verification_source="{source}"}} 0' in text
        for result in ("success", "invalid", "unavailable"):
            assert f'result="{result}",verification_source="{source}"' in text
    assert "fxa_breaker_state 0" in text
    assert "fxa_jwks_age_seconds -1" in text


@pytest.mark.parametrize("kind", ["good", "unknown"])
async def test_a_thousand_at_once_with_one_new_token_ask_fxa_once(rig: Rig, kind: str) -> None:
    rig.fxa.faults.set(Fault("verify", latency=0.1))
    token = rig.opaque() if kind == "good" else "f" * 64
    registry = Registry()
    async with rig.verifier(registry) as here, rig.verifier() as there:
        outcomes = await asyncio.gather(
            *((here, there)[number % 2].verify(token) for number in range(1000)), return_exceptions=True
        )
        if kind == "good":
            assert {getattr(outcome, "uid", outcome) for outcome in outcomes} == {UID}
        else:
            assert {type(outcome) for outcome in outcomes} == {InvalidFxAToken}
    assert rig.calls("verify") == 1


async def test_a_thousand_at_once_ask_fxa_once_without_redis_too(rig: Rig, unused_port: int) -> None:
    rig.redis_url = f"redis://127.0.0.1:{unused_port}/0"
    rig.fxa.faults.set(Fault("verify", latency=0.1))
    token = rig.opaque()
    async with rig.verifier() as verifier:
        identities = await asyncio.gather(*(verifier.verify(token) for _ in range(1000)))
        assert sorted(identity.source for identity in identities).count("remote") == 1
    assert rig.calls("verify") == 1


async def test_junk_makes_no_call_at_all(rig: Rig) -> None:
    claims = rig.fxa.claims(TokenOrder(uid=UID))
    header = {"kid": "unknown"}
    junk = [
        "",
        "junk",
        "f" * 63,
        "Bearer " + "f" * 64,
        rig.fxa.sign(claims, {**header, "typ": "JWT"}),
        rig.fxa.sign(claims, {**header, "crit": ["exp"]}),
        rig.fxa.sign({**claims, "iss": "https://evil.test"}, header),
        rig.fxa.sign({**claims, "exp": claims["iat"] - 100}, header),
        rig.fxa.sign({**claims, "sub": "x"}, header),
        rig.fxa.sign({**claims, "pad": "x" * 2000}, header),
    ]
    async with rig.verifier() as verifier, connect(rig.redis_url) as redis:
        fetched = rig.calls("jwks")
        await redis.config_resetstat()
        for token in junk:
            with pytest.raises(InvalidFxAToken):
                await verifier.verify(token)
        assert (rig.calls("verify"), rig.calls("jwks")) == (0, fetched)
        assert (await redis.info("commandstats")).keys() <= {"cmdstat_config|resetstat", "cmdstat_info"}


async def test_ten_thousand_jwts_with_unknown_key_ids_make_one_fetch(rig: Rig) -> None:
    token = rig.jwt()
    async with rig.verifier(cache_ttl=0) as verifier:
        fetched = rig.calls("jwks")
        for number in range(10_000 if FULL else 1_000):
            header, rest = rig.fxa.sign({}, {"kid": f"k{number}"}).split(".")[0], token.split(".", 1)[1]
            with pytest.raises(InvalidFxAToken):
                await verifier.verify(f"{header}.{rest}")
        assert rig.calls("jwks") == fetched + 1
        assert (await verifier.verify(token)).source == "local"


async def test_the_age_of_a_token_is_known_wherever_the_answer_comes_from(rig: Rig) -> None:
    rig.clock.now += 0.5
    changed = rig.fxa.claims(TokenOrder())["fxa-generation"]
    jwt, opaque = rig.jwt(), rig.opaque()
    rig.clock.now += 2
    async with rig.verifier() as verifier:
        for source in ("first", "cache"):
            one, other = await verifier.verify(jwt), await verifier.verify(opaque)
            assert (one.issued_at, one.generation) == (1_800_000_000, changed), source
            assert (other.issued_at, other.generation) == (1_800_000_002.5, None), source
            rig.clock.now += 1
    assert (one.source, other.source) == ("cache", "cache")


async def test_a_wrong_signature_is_refused(rig: Rig) -> None:
    head, claims, signature = rig.jwt().split(".")
    other = rig.jwt(uid="f" * 32)
    async with rig.verifier() as verifier:
        for token in (
            f"{head}.{claims}.{other.split('.')[2]}",
            f"{head}.{other.split('.')[1]}.{signature}",
            f"{head}.{claims}.{'A' * len(signature)}",
            f"{head}.{claims}.AA",
        ):
            for source in ("local", "cache"):
                with pytest.raises(InvalidFxAToken, match="wrong signature") as caught:
                    await verifier.verify(token)
                assert caught.value.source == source
    assert rig.calls("verify") == 0


async def test_a_waiter_that_is_cancelled_takes_nothing_from_the_others(rig: Rig) -> None:
    rig.fxa.faults.set(Fault("verify", latency=0.1))
    token = rig.opaque()
    async with rig.verifier() as verifier:
        waiters = [asyncio.create_task(verifier.verify(token)) for _ in range(10)]
        await rig.until_called("verify")
        waiters[0].cancel()  # who began it
        waiters[5].cancel()
        results = await asyncio.gather(*waiters, return_exceptions=True)
        assert sum(isinstance(result, asyncio.CancelledError) for result in results) == 2
        assert sum(getattr(result, "uid", None) == UID for result in results) == 8
        assert (await verifier.verify(token)).source == "cache"
    assert rig.calls("verify") == 1


async def test_who_asked_first_may_leave_while_redis_is_asked(rig: Rig, own_valkey: ValkeyServer) -> None:
    rig.redis_url = own_valkey.url
    token = rig.opaque()
    async with rig.verifier(cache_timeout=0.3) as verifier:
        own_valkey.pause()
        waiters = [asyncio.create_task(verifier.verify(token)) for _ in range(5)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        results = await asyncio.gather(*waiters, return_exceptions=True)
        own_valkey.resume()
        assert isinstance(results[0], asyncio.CancelledError)
        assert {getattr(result, "uid", result) for result in results[1:]} == {UID}
    assert rig.calls("verify") == 1


async def test_a_fault_of_ours_reaches_all_who_wait_and_leaves_nothing_behind(rig: Rig) -> None:
    class Broken:
        async def get(self, kid: str) -> None:
            raise ZeroDivisionError

    token = rig.jwt()
    async with rig.verifier() as verifier:
        whole, verifier.keys = verifier.keys, Broken()  # type: ignore[assignment]
        results = await asyncio.gather(*(verifier.verify(token) for _ in range(5)), return_exceptions=True)
        assert [type(result) for result in results] == [ZeroDivisionError] * 5
        verifier.keys = whole
        assert (await verifier.verify(token)).source == "local"


async def test_a_redis_cluster_does_as_well(rig: Rig, tmp_path: Path) -> None:
    with ValkeyCluster(tmp_path / "cluster") as cluster:
        rig.redis_url = cluster.url
        async with rig.verifier() as verifier:
            tokens = [rig.opaque() for _ in range(5)] + [rig.jwt()]
            for source in ("remote", "cache"):
                assert {(await verifier.verify(token)).source for token in tokens[:5]} == {source}
            assert [(await verifier.verify(tokens[5])).source for _ in range(2)] == ["local", "cache"]
            assert await verifier._cache.purge(UID) == 6
            assert {(await verifier.verify(token)).source for token in tokens} == {"remote", "local"}


async def test_a_process_that_died_while_verifying_holds_others_up_for_a_moment_only(rig: Rig) -> None:
    token = rig.opaque()
    async with rig.verifier(timeout=0.2, queue_wait=0.1) as verifier, connect(rig.redis_url) as redis:
        key = verifier._cache.key(token)
        await redis.set(key.lock, "the dead", px=60_000)
        started = time.monotonic()
        assert (await verifier.verify(token)).source == "remote"
        assert time.monotonic() - started < 2
        assert await redis.get(key.lock) == b"the dead"  # not ours to let go


async def test_the_lock_is_let_go_when_fxa_gave_no_answer(rig: Rig) -> None:
    token = rig.opaque()
    async with rig.verifier() as verifier, connect(rig.redis_url) as redis:
        rig.fxa.faults.set(OUTAGE)
        with pytest.raises(DependencyUnavailable):
            await verifier.verify(token)
        assert await redis.keys("*") == []
        rig.fxa.faults.clear()
        assert (await verifier.verify(token)).source == "remote"
        assert await redis.keys("mlpa:fxa:lock:*") == []


async def test_a_token_that_expires_while_it_is_remembered_is_refused(rig: Rig) -> None:
    async with rig.verifier() as verifier:
        token = rig.jwt(ttl=100)
        await verifier.verify(token)
        rig.clock.now += 60
        assert (await verifier.verify(token)).source == "cache"
        rig.clock.now += 20
        assert (await verifier.verify(token)).source == "local"
        rig.clock.now += 50
        with pytest.raises(InvalidFxAToken, match="expired"):
            await verifier.verify(token)


async def test_a_policy_that_changed_is_applied_to_what_was_remembered_before(rig: Rig) -> None:
    row = service_type()
    smart = "https://identity.mozilla.com/apps/smartwindow"
    async with rig.verifier() as verifier:
        token = rig.opaque(scopes=("profile:uid", smart), client_id="abc")
        policy.check(await verifier.verify(token), row)
        remembered = await verifier.verify(token)
        assert remembered.source == "cache"
        policy.check(remembered, msgspec.structs.replace(row, fxa_scopes=("profile:uid", smart)))
        with pytest.raises(ScopeNotAllowed):
            policy.check(remembered, msgspec.structs.replace(row, fxa_scopes=("profile:email",)))
        with pytest.raises(ClientNotAllowed):
            policy.check(remembered, msgspec.structs.replace(row, fxa_client_ids=("def",)))


async def test_an_opaque_token_that_fxa_destroyed_is_refused_after_a_minute_at_the_latest(rig: Rig) -> None:
    async with rig.verifier() as verifier:
        token = rig.opaque()
        await verifier.verify(token)
        rig.fxa.destroy(token)
        assert (await verifier.verify(token)).source == "cache"
        rig.clock.now += 60
        with pytest.raises(InvalidFxAToken):
            await verifier.verify(token)


async def test_in_an_outage_remembered_users_and_jwts_go_on_and_nobody_is_called_invalid(rig: Rig) -> None:
    async with rig.verifier() as verifier:
        known, jwt, new = rig.opaque(), rig.jwt(), rig.opaque()
        await verifier.verify(known)
        rig.fxa.faults.set(OUTAGE)
        rig.fxa.faults.set(JWKS_OUTAGE)
        for _ in range(10):
            assert (await verifier.verify(known)).uid == UID
            assert (await verifier.verify(jwt)).uid == UID
            with pytest.raises(DependencyUnavailable):
                await verifier.verify(new)
        rig.clock.now += 24 * 3600
        await verifier.keys.tick()
        assert (await verifier.verify(rig.jwt())).source == "local"


async def test_a_rotation_under_load_fails_no_exchange(rig: Rig) -> None:
    failures: list[BaseException] = []
    stop = asyncio.Event()

    async def load_it(verifier: FxAVerifier) -> None:
        while not stop.is_set():
            try:
                await verifier.verify(rig.jwt())
            except Exception as error:  # any is a failure here
                failures.append(error)

    async with rig.verifier() as verifier, rig.verifier() as other:
        workers = [asyncio.create_task(load_it(each)) for each in (verifier, other) for _ in range(4)]
        for _ in range(3):
            old = rig.jwt()
            rig.fxa.ring.rotate()
            for _ in range(20):
                await asyncio.sleep(0)
                await verifier.verify(rig.jwt())
            await verifier.verify(old)
            rig.clock.now += 250
            await asyncio.gather(verifier.keys.tick(), other.keys.tick())
        stop.set()
        await asyncio.gather(*workers)
    assert failures == []


async def test_readiness_tells_of_keys_breaker_and_reach(rig: Rig) -> None:
    rig.fxa.faults.set(JWKS_OUTAGE)
    async with rig.verifier() as verifier:
        with pytest.raises(CheckFailed, match="no key set"):
            await verifier.ready()
        rig.fxa.faults.clear()
        await verifier.keys.refresh()
        await verifier.ready()
        rig.fxa.faults.set(OUTAGE)
        for number in range(5):
            with pytest.raises(DependencyUnavailable):
                await verifier.verify(f"{number:064x}")
        with pytest.raises(CheckFailed, match="verifications fail"):
            await verifier.ready()


async def test_readiness_fails_when_fxa_is_out_of_reach(rig: Rig, unused_port: int) -> None:
    async with rig.verifier() as verifier:
        verifier._origin._base_url = f"http://127.0.0.1:{unused_port}"
        with pytest.raises(CheckFailed, match="no answer"):
            await verifier.ready()


async def test_closing_waits_for_nobody(rig: Rig) -> None:
    rig.fxa.faults.set(Fault("verify", "hang"))
    rig.fxa.faults.set(Fault("jwks", "hang"))
    async with rig.verifier(loaded=False, timeout=30) as verifier:
        asked = asyncio.create_task(verifier.verify(rig.opaque()))
        await rig.until_called("verify")
        started = time.monotonic()
    assert time.monotonic() - started < 1
    with pytest.raises(asyncio.CancelledError):
        await asked


async def test_the_issuer_is_exact(rig: Rig) -> None:
    async with rig.verifier(issuer=ISSUER + "/") as verifier:
        with pytest.raises(InvalidFxAToken, match="issuer"):
            await verifier.verify(rig.jwt())
