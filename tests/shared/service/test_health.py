"""Readiness: its conditions, and the rate and time limits of its checks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from shared.errors import DependencyUnavailable
from shared.service import health
from shared.service.health import Check, CheckFailed, Health

Probe = Callable[[], Awaitable[None]]


async def fine() -> None:
    pass


def failing(error: Exception) -> Probe:
    async def probe() -> None:
        raise error

    return probe


class Counted:
    """A probe that counts, and that ends when it may."""

    def __init__(self, *, free: bool = True) -> None:
        self.runs = 0
        self.free = asyncio.Event()
        if free:
            self.free.set()

    async def __call__(self) -> None:
        self.runs += 1
        await self.free.wait()


@pytest.mark.parametrize(
    ("required", "optional", "expected"),
    [(True, True, (200, "ready")), (True, False, (200, "degraded")), (False, True, (503, "unavailable"))],
)
async def test_only_a_required_check_makes_it_unready(
    required: bool, optional: bool, expected: tuple[int, str]
) -> None:
    bad = failing(CheckFailed("broken"))
    checks = [
        Check("required", fine if required else bad, required=True),
        Check("optional", fine if optional else bad, required=False),
    ]
    status, body = await Health(checks).readiness(draining=False)
    assert (status, body["status"]) == expected


async def test_a_drain_makes_it_unready_whatever_the_checks_say() -> None:
    status, body = await Health([Check("one", fine, required=True)]).readiness(draining=True)
    assert (status, body["status"], body["checks"]["one"]["status"]) == (503, "unavailable", "ok")


@pytest.mark.parametrize(("first", "second", "status"), [(True, False, 200), (False, True, 200), (False, False, 503)])
async def test_one_of_a_group_suffices(first: bool, second: bool, status: int) -> None:
    bad = failing(DependencyUnavailable("redis"))
    checks = [Check(name, fine if ok else bad, required=False) for name, ok in (("a", first), ("b", second))]
    answer, body = await Health(checks, one_of={"store": ("a", "b")}).readiness(draining=False)
    assert answer == status
    assert body["checks"]["store"]["required"]
    assert body["checks"]["store"]["error"] == (None if status == 200 else "none of a, b is there")


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (CheckFailed("there is no signing key"), "there is no signing key"),
        (DependencyUnavailable("postgres"), "unavailable"),
        (ValueError("password=secret"), "ValueError"),
    ],
)
async def test_a_check_shows_its_own_words_and_no_others(error: Exception, shown: str) -> None:
    _, body = await Health([Check("one", failing(error), required=True)]).readiness(draining=False)
    assert body["checks"]["one"]["error"] == shown


async def test_a_check_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "TIMEOUT", 0.05)
    hanging = Counted(free=False)
    checks = [Check("hanging", hanging, required=True), Check("fine", fine, required=True)]
    status, body = await Health(checks).readiness(draining=False)
    assert status == 503
    assert body["checks"]["hanging"]["error"] == "no answer within 0.05 s"
    assert body["checks"]["fine"]["status"] == "ok"


async def test_results_are_kept_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Counted()
    kept = Health([Check("one", probe, required=True)])
    for _ in range(3):
        await kept.readiness(draining=False)
    assert probe.runs == 1
    monkeypatch.setattr(health, "KEEP", 0)
    fresh = Health([Check("one", probe, required=True)])
    for _ in range(2):
        await fresh.readiness(draining=False)
    assert probe.runs == 3


async def test_those_who_ask_at_once_share_one_run_even_when_the_first_leaves() -> None:
    probe = Counted(free=False)
    shared = Health([Check("one", probe, required=True)])
    asked = [asyncio.create_task(shared.readiness(draining=False)) for _ in range(5)]
    while not probe.runs:  # noqa: ASYNC110 - the probe only counts
        await asyncio.sleep(0)
    asked[0].cancel()
    probe.free.set()
    assert {(await one)[0] for one in asked[1:]} == {200}
    assert probe.runs == 1
