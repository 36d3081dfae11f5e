"""A fast stand-in for LiteLLM, in a process of its own: `python -m tests.bench.relay.upstream PORT JWKS`.

The model's name says what it does: `paced-MS-N` sends N events MS milliseconds apart, `burst-N` sends N as fast as
they are taken, anything else is answered at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import uvloop
from aiohttp import web

from tests.doubles.litellm import DONE, answer, chunk, event, model_row, usage_chunk

EVENT = event(chunk("some words "))
END = event(chunk(finish="stop")) + event(usage_chunk(10, 100)) + DONE
ANSWER = json.dumps(answer("word " * 50)).encode()
MODELS = [
    "plain",
    "paced-20-50",
    "paced-20-75",
    "paced-20-300",
    "paced-20-700",
    "paced-50-300",
    "paced-500-8",
    "paced-500-10",
    "paced-5000-48",
    "burst-10",
    "burst-100",
]


async def chat(request: web.Request) -> web.StreamResponse:
    kind, *numbers = json.loads(await request.read())["model"].split("-")
    if kind == "plain":
        return web.Response(body=ANSWER, content_type="application/json")
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    if kind == "paced":
        pause, count = int(numbers[0]) / 1000, int(numbers[1])
        for _ in range(count):
            await response.write(EVENT)
            await asyncio.sleep(pause)
    else:
        for number in range(int(numbers[0])):
            await response.write(EVENT)
            if number % 32 == 31:
                await asyncio.sleep(0)  # the other streams' turn
    await response.write(END)
    return response


async def main(port: int, jwks: Path) -> None:
    app = web.Application(client_max_size=2**24)
    app.router.add_post("/v1/chat/completions", chat)
    rows = [model_row(name, input_cost=1e-9, output_cost=1e-9) for name in MODELS]
    app.router.add_get("/model/info", lambda _request: _json({"data": rows}))
    app.router.add_get("/health/liveliness", lambda _request: _json("I'm alive!"))
    app.router.add_get("/jwks", lambda _request: _json(json.loads(jwks.read_text())))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    await asyncio.Event().wait()


async def _json(value: object) -> web.Response:
    return web.json_response(value)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), Path(sys.argv[2])))
