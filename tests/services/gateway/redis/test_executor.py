"""The executor with one Redis."""

from __future__ import annotations

import asyncio
import time

import pytest

from services.gateway.redis.executor import Executor
from services.local.valkey import ValkeyServer
from shared.state import layout
from shared.state.script import Script
from shared.stores.dependency import Dependency
from tests.support.waiting import until

KEYS = layout.SHARD_KEYS[0]


async def test_an_answer_that_waited_for_a_blocked_loop_beyond_the_deadline_counts(own_valkey: ValkeyServer) -> None:
    """Redis did answer in time, to a script whose connection was opened for it."""
    script = Script("snapshot")
    with own_valkey.client() as client:
        client.script_load(script.source)
    async with Executor.open(own_valkey.url, (), timeout=0.4) as executor:
        call = script.call(user=KEYS.user("u"), identity=KEYS.identity("i"), forgotten=KEYS.forgotten)
        answer = asyncio.create_task(executor.run(0, call))
        await until(lambda: any(link._pending and not link._out for link in executor.links()), pause=0)
        time.sleep(0.5)  # noqa: ASYNC251 - the loop is to be blocked
        assert (await answer)[:2] == [b"0", b"0/"]


async def test_the_first_good_script_ends_an_outage_in_the_log(
    own_valkey: ValkeyServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """With no check and no new connection: nobody may ask for readiness, and a server that loads keeps connections."""
    script, clock = Script("snapshot"), [0.0]
    call = script.call(user=KEYS.user("u"), identity=KEYS.identity("i"), forgotten=KEYS.forgotten)
    async with Executor.open(own_valkey.url, ()) as executor:
        await executor.run(0, call)
        executor.state = Dependency("redis", now=lambda: clock[0])
        executor.state.failed("the server is still loading its data (LOADING)")
        clock[0] = 3.0
        await executor.run(0, call)
        assert executor.state.reason is None
        with own_valkey.client() as client:
            client.script_flush()
        assert (await executor.run(0, call))[:2] == [b"0", b"0/"], "an answer to be cleared up is none"
        executor.state.failed("the server's memory is full (OOM)")
        clock[0] = 9.0
        await executor.run(0, call)
        assert executor.state.reason is not None, "a script that only reads says nothing of those that write"
        tell = Script("sums_tell")
        await executor.run(0, tell.call(sums=KEYS.sums, read_at=1, each=[]))
        assert executor.state.reason is None
    assert capsys.readouterr().out.count("dependency_back") == 2
