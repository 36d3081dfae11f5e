"""A LiteLLM that the test controls: every legal and illegal answer, late, cut, hung or reset.

What it imitates, with the source. Files are of BerriAI/litellm 1.106.2, below litellm/; what is marked (real)
is compared with a running LiteLLM by tests/clients/test_litellm_double.py.

    an answer, with annotations and provider_specific_     types/utils.py (ModelResponse, Message) (real)
    fields
    a stream: null members left out, usage and its cost    litellm_core_utils/streaming_handler.py,
    in a chunk with a choice, ``[DONE]``                   proxy/proxy_server.py (async_data_generator) (real)
    x-litellm-call-id, -model-id, -response-cost (of an    proxy/common_request_processing.py (get_custom_headers)
    answer that is not a stream)                           (real)
    errors: message, type, param, code as a string         proxy/_types.py (ProxyException.to_dict) (real)
    a stream that fails after its first chunk: status      proxy/proxy_server.py (async_data_generator)
    200, an event with the error, no ``[DONE]``
    /health/liveliness: ``"I'm alive!"`` (real), and 503   proxy/health_endpoints/_health_endpoints.py
    while it shuts down (``healthy`` is False)
    /model/info: name, parameters, prices, limits          proxy/proxy_server.py (model_info_v1) (real)

Where it differs on purpose:

    - a script may send what no LiteLLM sends
    - any key will do; a model has no prices but those of ``model_row``, and few of the members of its row
    - usage is constant, and no answer is compressed

A real aiohttp server. What a request gets is scripted by its model's name, or where it has none by its path
(``LiteLLMDouble.script``, or ``POST /double/script`` from another process); it notes what it was asked, what it
delivered, and what is open.

    python -m tests.doubles.litellm --port 4000        the same in a process of its own, to be killed or stopped
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Step = tuple[str, Any]


def chunk(content: str | None = None, *, index: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """A chunk as LiteLLM makes it."""
    if content is not None:
        delta["content"] = content
    finished = {} if finish is None else {"finish_reason": finish}
    return {
        "id": "chatcmpl-double",
        "created": 1760000000,
        "model": "double",
        "object": "chat.completion.chunk",
        "choices": [{**finished, "index": index, "delta": delta}],
    }


def usage_chunk(prompt: int, completion: int, *, choices: Any = "litellm") -> dict[str, Any]:
    """The chunk before [DONE]; its ``choices`` are not empty in LiteLLM, but are in OpenAI's API."""
    given = chunk()
    given["choices"] = [{"index": 0, "delta": {}}] if choices == "litellm" else choices
    given["usage"] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "cost": 0.0001,
    }
    return given


def event(data: Any) -> bytes:
    """An event as LiteLLM writes it."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def stream_of(texts: Iterable[str], *, prompt: int = 10, completion: int | None = None) -> list[bytes]:
    """A whole ordinary stream, event by event."""
    texts = list(texts)
    return [
        event(chunk(role="assistant", content="")),
        *(event(chunk(text)) for text in texts),
        event(chunk(finish="stop")),
        event(usage_chunk(prompt, len(texts) if completion is None else completion)),
        DONE,
    ]


def answer(content: str = "Hello", *, prompt: int = 10, completion: int = 5, **message: Any) -> dict[str, Any]:
    """An answer that is not a stream."""
    return {
        "id": "chatcmpl-double",
        "created": 1760000000,
        "model": "double",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {
                    "role": "assistant",
                    "content": content,
                    "provider_specific_fields": {"refusal": None},
                    "annotations": [],
                    **message,
                },
                "provider_specific_fields": {},
            }
        ],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }


def embeddings(items: int = 1, *, prompt: int = 10, encoding_format: str = "float") -> dict[str, Any]:
    """An answer of embeddings, each of four numbers."""
    vector: Any = [0.25, -0.5, 0.0, 1.0]
    if encoding_format == "base64":
        vector = base64.b64encode(struct.pack("<4f", *vector)).decode()
    return {
        "model": "double",
        "data": [{"embedding": vector, "index": index, "object": "embedding"} for index in range(items)],
        "object": "list",
        "usage": {"prompt_tokens": prompt, "completion_tokens": 0, "total_tokens": prompt},
    }


def search_answer(results: int = 1) -> dict[str, Any]:
    """The answer of a search tool."""
    found = {"title": "Title", "url": "https://example.org", "snippet": "Text", "date": "2026-11-01T00:00:00.000Z"}
    return {"results": [{**found, "last_updated": None} for _ in range(results)], "object": "search"}


def error_body(message: str, kind: str | None, code: str, param: str | None = None) -> dict[str, Any]:
    """LiteLLM's error object; its code is a string."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(slots=True)
class Script:
    """What a request gets. Steps, in order:

    ("send", bytes)   write      ("sleep", s)   wait            ("gate", name)  wait until ``open_gate(name)``
    ("hang", None)    for ever   ("cut", None)  close without the end of the body
    ("reset", None)   RST        ("flood", bytes) write without end
    ("raw", bytes)    past HTTP: no chunk around it
    """

    steps: list[Step] = field(default_factory=list)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "text/event-stream"
    #: Before the status line.
    first: list[Step] = field(default_factory=list)

    @classmethod
    def events(cls, parts: Iterable[bytes], *, pause: float | None = None, **options: Any) -> Script:
        """Each part in a write of its own, ``pause`` seconds apart."""
        steps: list[Step] = []
        for part in parts:
            steps.append(("send", part))
            if pause is not None:
                steps.append(("sleep", pause))
        return cls(steps, **options)

    @classmethod
    def json(cls, body: Any, status: int = 200, **headers: str) -> Script:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return cls([("send", data)], status, {k.replace("_", "-"): v for k, v in headers.items()}, "application/json")


@dataclass(slots=True, eq=False)
class Asked:
    """A request as it came, and how it went."""

    body: dict[str, Any]
    raw: bytes
    headers: dict[str, str]
    delivered: int = 0
    events: int = 0
    #: "open", then "done" | "cut" | "gone" (the gateway closed the connection).
    state: str = "open"
    ended_at: float = 0.0
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class LiteLLMDouble:
    """Use ``async with LiteLLMDouble() as double``; ``double.url`` is its base URL."""

    def __init__(self, *, port: int = 0) -> None:
        self.scripts: dict[str, Script] = {}
        self.asked: list[Asked] = []
        self.healthy = True
        self.liveliness_seconds = 0.0  #: how long a liveness check takes
        self.models: list[dict[str, Any]] = [model_row("double")]
        self._gates: dict[str, asyncio.Event] = {}
        self._came = asyncio.Condition()
        self._port, self.port = port, port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def open(self) -> int:
        """Requests that are not over."""
        return sum(asked.state == "open" for asked in self.asked)

    @property
    def connections(self) -> int:
        server = self._runner.server
        return len(server.connections) if server else 0

    def script(self, model: str, script: Script, **info: Any) -> None:
        """:param info: members of its row's ``model_info``, if it is a new model."""
        self.scripts[model] = script
        if all(row["model_name"] != model for row in self.models):
            self.models.append(model_row(model, **info))

    def open_gate(self, name: str) -> None:
        self._gate(name).set()

    def _gate(self, name: str) -> asyncio.Event:
        return self._gates.setdefault(name, asyncio.Event())

    async def wait_asked(self, number: int = 1, seconds: float = 5) -> Asked:
        """The request of that number (from 1), once it has come."""
        async with asyncio.timeout(seconds), self._came:
            await self._came.wait_for(lambda: len(self.asked) >= number)
        return self.asked[number - 1]

    async def __aenter__(self) -> LiteLLMDouble:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/{path:.+}", self._ask)
        app.router.add_get("/health/liveliness", self._liveliness)
        app.router.add_get("/model/info", self._model_info)
        app.router.add_post("/double/script", self._set_script)
        app.router.add_post("/double/gate/{name}", self._open_gate)
        app.router.add_post("/double/liveliness", self._slow_liveliness)
        app.router.add_get("/double/state", self._state)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def start(self) -> None:
        """Listen; again after ``stop`` on the same port."""
        self._site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await self._site.start()
        self.port = self._site.port

    async def stop(self) -> None:
        """Refuse connections."""
        await self._site.stop()

    async def _liveliness(self, _request: web.Request) -> web.Response:
        await asyncio.sleep(self.liveliness_seconds)
        if not self.healthy:
            return web.json_response({"status": "shutting_down"}, status=503)
        return web.json_response("I'm alive!")

    async def _model_info(self, _request: web.Request) -> web.Response:
        return web.json_response({"data": self.models})

    async def _set_script(self, request: web.Request) -> web.Response:
        given = await request.json()
        steps = [
            (name, value.encode() if isinstance(value, str) and name != "gate" else value)
            for name, value in given["steps"]
        ]
        script = Script(steps, given.get("status", 200), given.get("headers", {}))
        self.script(given["model"], script, **given.get("info", {}))
        return web.json_response({})

    async def _open_gate(self, request: web.Request) -> web.Response:
        self.open_gate(request.match_info["name"])
        return web.json_response({})

    async def _slow_liveliness(self, request: web.Request) -> web.Response:
        self.liveliness_seconds = (await request.json())["seconds"]
        return web.json_response({})

    async def _state(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {
                "open": self.open,
                "connections": self.connections,
                "asked": [{"state": a.state, "delivered": a.delivered, "body": a.body} for a in self.asked],
            }
        )

    async def _ask(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        asked = Asked(json.loads(raw), raw, dict(request.headers))
        self.asked.append(asked)
        async with self._came:
            self._came.notify_all()
        script = self.scripts.get(asked.body.get("model", request.path)) or _ordinary(request.path, asked.body)
        try:
            response = await self._play(request, asked, script)
        except (asyncio.CancelledError, ConnectionError):
            if asked.state == "open":
                asked.state = "gone"
            raise
        else:
            asked.state = "done"
            return response
        finally:
            asked.ended_at = time.monotonic()
            asked.ended.set()

    async def _play(self, request: web.Request, asked: Asked, script: Script) -> web.StreamResponse:
        response = web.StreamResponse(
            status=script.status, headers={"Content-Type": script.content_type, **script.headers}
        )
        for step in script.first:
            await self._do(request, response, asked, step)
        await response.prepare(request)
        for step in script.steps:
            await self._do(request, response, asked, step)
        return response

    async def _do(self, request: web.Request, response: web.StreamResponse, asked: Asked, step: Step) -> None:
        name, value = step
        transport = request.transport
        if name == "send":
            await response.write(value)
            asked.delivered += len(value)
            asked.events += 1
        elif name == "sleep":
            await asyncio.sleep(value)
        elif name == "gate":
            await self._gate(value).wait()
        elif name == "hang":
            await asyncio.Event().wait()
        elif name == "flood":
            while True:
                await response.write(value)
                asked.delivered += len(value)
                await asyncio.sleep(0)
        elif name == "raw" and transport is not None:
            transport.write(value)
        elif name in ("cut", "reset") and transport is not None:
            asked.state = "cut"
            sock = transport.get_extra_info("socket")
            if name == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                transport.abort()
            else:
                transport.close()
            raise ConnectionResetError


def _ordinary(path: str, body: dict[str, Any]) -> Script:
    if body.get("stream"):
        return Script.events(stream_of(["Hel", "lo"]))
    headers = {"x_litellm_call_id": "call-of-the-double", "x_litellm_model_id": "double"}
    if path.startswith("/v1/search/"):
        return Script.json(search_answer(body["max_results"]), x_litellm_response_cost="0.005", **headers)
    if path == "/v1/embeddings":
        items = len(given) if isinstance(given := body["input"], list) and not isinstance(given[0], int) else 1
        made = embeddings(items, encoding_format=body.get("encoding_format", "float"))
        return Script.json(made, x_litellm_response_cost="0.0000002", **headers)
    return Script.json(answer(), x_litellm_response_cost="0.000025", **headers)


def model_row(name: str, *, input_cost: float = 1e-6, output_cost: float = 2e-6, **info: Any) -> dict[str, Any]:
    """A row of /model/info."""
    return {
        "model_name": name,
        "litellm_params": {"model": f"openai/{name}"},
        "model_info": {"input_cost_per_token": input_cost, "output_cost_per_token": output_cost, **info},
    }


@asynccontextmanager
async def running(port: int = 0) -> AsyncIterator[LiteLLMDouble]:
    async with LiteLLMDouble(port=port) as double:
        yield double


async def _main(port: int) -> None:
    async with running(port) as double:
        slow = [event(chunk("x")) for _ in range(1000)]
        double.script("slow", Script.events(slow, pause=0.05))
        double.script("small-embeddings", Script.json(embeddings()), mode="embedding", output_cost=0)
        print(double.port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    asyncio.run(_main(parser.parse_args().port))
