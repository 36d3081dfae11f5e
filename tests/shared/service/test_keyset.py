"""A key set: its usable keys, and the times of its readings."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, strategies as st
from jose import jwk
from jose.backends.base import Key

from shared.domain.tokens import KEY_SET_KEPT
from shared.errors import DependencyUnavailable
from shared.service import keyset
from shared.service.fetch import NoAnswer
from shared.service.keyset import KeySet
from shared.telemetry.metrics import Registry


def make_key() -> Key:
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return jwk.construct(pem.decode(), "ES256")


KEYS = {name: make_key() for name in ("a", "b", "other a")}


class Entry(msgspec.Struct):
    kid: str
    of: Literal["a", "b"]


def construct(raw: msgspec.Raw) -> tuple[str, Key]:
    entry = msgspec.json.decode(raw, type=Entry)
    return entry.kid, KEYS[entry.of]


@dataclass
class Rig:
    """A key set for which the test sets the service's answers and the clock's time."""

    published: dict[str, Key] | Exception = field(default_factory=lambda: {"a": KEYS["a"]})
    now: float = 1000.0
    reads: int = 0
    told: list[str | None] = field(default_factory=list)
    drops: int = 0

    gate: asyncio.Event | None = None

    def __post_init__(self) -> None:
        self.age = Registry().gauge("age", "Age.")
        self.keys = KeySet(
            self._fetch,
            self._parse,
            dependency="auth",
            refresh=100,
            retry=(1, 2, 4),
            unknown_kid=10,
            clock=lambda: self.now,
            age=self.age,
            on_read=self.told.append,
            on_drop=self._dropped,
        )

    async def _fetch(self) -> bytes:
        self.reads += 1
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.published, NoAnswer):
            raise self.published
        return b""

    def _parse(self, _body: bytes) -> dict[str, Key]:
        if isinstance(self.published, Exception):
            raise self.published
        return self.published

    def _dropped(self) -> None:
        self.drops += 1


async def test_keys_are_read_when_due_and_at_no_other_time() -> None:
    rig = Rig()
    assert (rig.keys.loaded, rig.age.value()) == (False, -1)
    await rig.keys.tick()
    assert (rig.keys.loaded, rig.age.value(), len(rig.keys)) == (True, 0, 1)
    rig.now += 89
    await rig.keys.tick()
    assert (rig.reads, rig.age.value()) == (1, 89)
    rig.now += 11
    await rig.keys.tick()
    assert (rig.reads, rig.age.value()) == (2, 0)


@pytest.mark.parametrize("with_keys", [True, False])
async def test_failures_are_tried_again_later_and_later_until_one_succeeds(with_keys: bool) -> None:
    rig = Rig()
    if with_keys:
        await rig.keys.refresh()
        rig.now += 100
    before, failed_at = rig.reads, []
    rig.published = NoAnswer("timeout")
    for _ in range(16):
        reads = rig.reads
        await rig.keys.tick()
        if rig.reads > reads:
            failed_at.append(rig.now)
        rig.now += 0.5
    assert [late - early for early, late in pairwise(failed_at)] == [1, 2, 4]
    assert rig.keys.failures == rig.reads - before == 4
    rig.published = {"b": KEYS["b"]}
    rig.now += 4
    await rig.keys.tick()
    assert (rig.keys.failures, await rig.keys.get("b")) == (0, KEYS["b"])
    assert rig.told[-5:] == ["timeout"] * 4 + [None]


@pytest.mark.parametrize(
    ("fault", "reason"), [(NoAnswer("too_large"), "too_large"), (ValueError("no usable key"), "malformed")]
)
async def test_a_reading_that_fails_replaces_nothing(fault: Exception, reason: str) -> None:
    rig = Rig()
    await rig.keys.refresh()
    rig.published = fault
    await rig.keys.refresh()
    assert (await rig.keys.get("a"), rig.told) == (KEYS["a"], [None, reason])


async def test_keys_that_cannot_be_read_for_a_day_are_dropped() -> None:
    rig = Rig()
    await rig.keys.refresh()
    rig.published = NoAnswer("connection")
    rig.now += KEY_SET_KEPT
    assert await rig.keys.get("a") is KEYS["a"]
    rig.now += 1
    with pytest.raises(DependencyUnavailable):
        await rig.keys.get("a")
    await rig.keys.tick()
    assert (rig.keys.loaded, rig.age.value(), rig.drops) == (False, -1, 1)
    assert not rig.keys.holds("a", KEYS["a"])


async def test_unknown_kids_cause_one_reading_in_ten_seconds() -> None:
    rig = Rig()
    await rig.keys.refresh()
    for _ in range(3):
        assert [await rig.keys.get(f"unknown {number}") for number in range(5)] == [None] * 5
    assert rig.reads == 2
    rig.now += 10
    assert await asyncio.gather(*(rig.keys.get(f"unknown {number}") for number in range(5))) == [None] * 5
    assert rig.reads == 3


async def test_a_key_that_was_published_since_is_found_at_once() -> None:
    rig = Rig()
    await rig.keys.refresh()
    rig.published = {"a": KEYS["a"], "b": KEYS["b"]}
    assert await rig.keys.get("b") is KEYS["b"]


async def test_an_unknown_kid_is_not_judged_while_the_service_cannot_be_asked() -> None:
    rig = Rig()
    await rig.keys.refresh()
    rig.published = NoAnswer("rate_limited", retry_after=200)
    for _ in range(3):
        with pytest.raises(DependencyUnavailable) as caught:
            await rig.keys.get("b")
        assert caught.value.dependency == "auth"
        assert 1 <= (caught.value.retry_after or 0) <= 200
    rig.now += 199
    await rig.keys.tick()
    assert rig.reads == 2, "the service asked for more time"
    assert await rig.keys.get("a") is KEYS["a"]
    rig.published = {"a": KEYS["a"], "b": KEYS["b"]}
    rig.now += 1
    assert await rig.keys.get("b") is KEYS["b"]


async def test_a_wish_to_be_asked_much_later_counts_for_five_minutes() -> None:
    rig = Rig()
    rig.published = NoAnswer("status", retry_after=1e9)
    await rig.keys.refresh()
    rig.published = {"a": KEYS["a"]}
    rig.now += keyset.LONGEST_ASKED
    assert await rig.keys.get("a") is KEYS["a"]


async def test_without_keys_the_first_token_waits_for_them_and_one_that_leaves_stops_nothing() -> None:
    rig = Rig()
    rig.gate = asyncio.Event()
    waiters = [asyncio.create_task(rig.keys.get("a")) for _ in range(3)]
    await asyncio.sleep(0)
    waiters[0].cancel()
    await asyncio.wait([waiters[0]])
    rig.gate.set()
    assert await asyncio.gather(*waiters[1:]) == [KEYS["a"]] * 2
    assert rig.reads == 1


@pytest.mark.parametrize(
    ("published", "unchanged"),
    [
        ({"a": KEYS["a"], "b": KEYS["b"]}, {"a", "b"}),
        ({"a": KEYS["a"], "b": KEYS["b"], "c": KEYS["b"]}, {"a", "b"}),
        ({"a": KEYS["other a"], "b": KEYS["b"]}, {"b"}),
        ({"b": KEYS["b"]}, {"b"}),
        ({"c": KEYS["b"]}, set()),
    ],
)
async def test_a_key_that_is_published_again_stays_the_same_object_and_others_do_not(
    published: dict[str, Key], unchanged: set[str]
) -> None:
    rig = Rig()
    rig.published = {"a": KEYS["a"], "b": KEYS["b"]}
    await rig.keys.refresh()
    rig.published = {kid: jwk.construct(key.to_dict(), "ES256") for kid, key in published.items()}
    await rig.keys.refresh()
    assert {kid for kid in "ab" if rig.keys.holds(kid, KEYS[kid])} == unchanged


def test_the_usable_keys_are_taken_and_the_first_of_a_kid() -> None:
    unusable = [{"kid": "a"}, 7, None, {"kid": "x", "of": "nothing"}, {"of": "a"}]
    listed = [*unusable, {"kid": "a", "of": "a"}, {"kid": "a", "of": "b"}, {"kid": "b", "of": "b"}]
    assert keyset.parse(json.dumps({"keys": listed}).encode(), construct) == {"a": KEYS["a"], "b": KEYS["b"]}


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"keys":[]}', b'{"keys":[1]}', b"\xff", b"[" * 60_000, b'{"keys":[' + b"[" * 60_000],
    ids=range(8),
)
def test_what_has_no_usable_key_is_no_key_set(body: bytes) -> None:
    with pytest.raises(ValueError):
        keyset.parse(body, construct)


def test_too_many_keys_are_no_key_set() -> None:
    entries = [{"kid": str(number), "of": "a"} for number in range(keyset.MAX_KEYS + 1)]
    assert len(keyset.parse(json.dumps({"keys": entries[1:]}).encode(), construct)) == keyset.MAX_KEYS
    with pytest.raises(ValueError):
        keyset.parse(json.dumps({"keys": entries}).encode(), construct)


@given(st.lists(st.tuples(st.sampled_from(["fail", "read", "unknown", "wait"]), st.integers(0, 200)), max_size=40))
async def test_whatever_happens_readings_stay_few_and_known_keys_known(steps: list[tuple[str, int]]) -> None:
    rig = Rig()
    await rig.keys.refresh()
    began, first = rig.now, rig.reads
    for step, seconds in steps:
        if step == "fail":
            rig.published = NoAnswer("status")
        elif step == "read":
            rig.published = {"a": KEYS["a"]}
        elif step == "unknown":
            with contextlib.suppress(DependencyUnavailable):
                assert await rig.keys.get("unknown") is None
        rig.now += seconds
        await rig.keys.tick()
        assert await rig.keys.get("a") is KEYS["a"]
    for_unknown = sum(step == "unknown" for step, _ in steps)
    assert rig.reads - first <= len(steps) + min(for_unknown, (rig.now - began) // 10 + 1)
