"""Single flights: one run for all callers, whichever of them leaves."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from shared.service.flight import Flight, Kept


class Work:
    """A function that waits at a gate, and counts its runs."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.gate = asyncio.Event()
        self.failure: Exception | None = None
        self.cancelled = 0

    async def __call__(self, name: str) -> str:
        self.runs.append(name)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failure is not None:
            raise self.failure
        return f"{name} {len(self.runs)}"


async def started(*calls: Any) -> list[asyncio.Task[Any]]:
    """Tasks that have come to where they wait."""
    tasks = [asyncio.create_task(call) for call in calls]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_calls_at_the_same_time_share_a_run_and_the_next_call_begins_another() -> None:
    work = Work()
    flight = Flight(work)
    calls = await started(flight("a"), flight("a"), flight("b"))
    assert flight.under_way("a")
    work.gate.set()
    assert await asyncio.gather(*calls) == ["a 2", "a 2", "b 2"]
    assert not flight.under_way("a")
    assert await flight("a") == "a 3"
    assert work.runs == ["a", "b", "a"]


@pytest.mark.parametrize("leaving", [[0], [1], [0, 1], [0, 2]])
async def test_whoever_stops_waiting_the_others_receive_the_result(leaving: list[int]) -> None:
    work = Work()
    flight = Flight(work)
    calls = await started(*(flight("a") for _ in range(3)))
    for index in leaving:
        calls[index].cancel()
    await asyncio.wait([calls[index] for index in leaving])
    work.gate.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    for index, result in enumerate(results):
        assert isinstance(result, asyncio.CancelledError) if index in leaving else result == "a 1"
    assert work.runs == ["a"]


async def test_a_run_that_nobody_waits_for_any_more_goes_on_and_is_joined() -> None:
    work = Work()
    flight = Flight(work)
    (call,) = await started(flight("a"))
    call.cancel()
    await asyncio.wait([call])
    (late,) = await started(flight("a"))
    work.gate.set()
    assert await late == "a 1"
    assert (work.runs, work.cancelled) == (["a"], 0)


async def test_a_failure_reaches_every_caller_and_the_next_call_tries_again() -> None:
    work = Work()
    flight = Flight(work)
    work.failure = ValueError("broken")
    calls = await started(flight("a"), flight("a"))
    work.gate.set()
    assert await asyncio.gather(*calls, return_exceptions=True) == [work.failure, work.failure]
    work.failure = None
    assert await flight("a") == "a 2"


async def test_a_failure_that_no_caller_is_left_for_is_not_reported_as_an_error_of_asyncio() -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))
    work = Work()
    flight = Flight(work)
    work.failure = ValueError("broken")
    (call,) = await started(flight("a"))
    call.cancel()
    work.gate.set()
    await asyncio.wait([flight.start("a")])
    del call
    gc.collect()
    assert reported == []


async def test_a_run_may_call_another_but_not_itself() -> None:
    async def countdown(number: int) -> int:
        return 0 if number == 0 else await flight(number - 1) + 1

    async def endless(number: int) -> int:
        return await endless_flight(number)

    flight, endless_flight = Flight(countdown), Flight(endless)
    async with asyncio.timeout(5):
        assert await flight(3) == 3
        with pytest.raises(RuntimeError):
            await endless_flight(1)


async def test_closing_ends_every_run() -> None:
    work = Work()
    flight = Flight(work)
    calls = await started(flight("a"), flight("b"))
    await flight.close()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    assert work.cancelled == 2
    assert not flight.under_way("a")


async def test_a_result_is_kept_for_its_seconds_and_a_failure_is_not() -> None:
    now, answers = 0.0, iter([ValueError("broken"), "first", "second"])

    async def work() -> str:
        answer = next(answers)
        if isinstance(answer, ValueError):
            raise answer
        return answer

    kept = Kept(work, 3, clock=lambda: now)
    with pytest.raises(ValueError, match="broken"):
        await kept.get()
    assert await asyncio.gather(kept.get(), kept.get()) == ["first", "first"]
    now = 2.9
    assert await kept.get() == "first"
    now = 3.0
    assert await kept.get() == "second"
