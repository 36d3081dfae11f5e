"""The cheapest possible clients: bare sockets, which know the end of an answer by its last bytes."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field

END_OF_CHUNKS = b"0\r\n\r\n"
STALL = 0.02


@dataclass(slots=True)
class Load:
    """The experience of a number of clients: seconds to the first event, errors, events."""

    first: list[float] = field(default_factory=list)
    errors: int = 0
    events: int = 0
    requests: int = 0
    #: Gaps of more than ``STALL`` seconds between events, whichever streams they belong to.
    stalls: int = 0
    last: float = float("inf")

    def seen(self, events: int) -> None:
        """Events have arrived."""
        now = time.perf_counter()
        self.events += events
        self.stalls += now - self.last > STALL
        self.last = now

    def fail(self, why: str) -> None:
        self.errors += 1
        print(f"failed: {why!r}", file=sys.stderr)


def request(model: str, token: str, *, stream: bool, image: int = 0, fields: str = "") -> bytes:
    """The bytes of a chat, with an image of so many bytes of base64 where there is to be one.

    :param fields: more of its head, each with the end of its line.
    """
    text = "Tell me something about proxies. " * 5
    url = f"data:image/png;base64,{'A' * (image // 4 * 4)}"
    content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}] if image else text
    body = json.dumps(
        {
            "model": model,
            "stream": stream,
            "messages": [
                {"role": "system", "content": "You are a helpful assistant. " * 10},
                {"role": "user", "content": content},
            ],
            "max_completion_tokens": 100,
        }
    ).encode()
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {token}\r\nContent-Length: {len(body)}\r\n{fields}\r\n"
    ).encode() + body


async def stream(port: int, ask: bytes, load: Load) -> None:
    """One stream over a connection of its own."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        started = time.perf_counter()
        writer.write(ask)
        seen, tail, done, head = False, b"", False, b""
        while part := await reader.read(262_144):
            head = head or part[:400]
            load.seen(part.count(b"data: {"))
            if not seen and b"data: {" in part:
                seen = True
                load.first.append(time.perf_counter() - started)
            tail = (tail + part)[-64:]
            done = done or b"[DONE]" in tail
            if tail.endswith(END_OF_CHUNKS):
                break
        if not done:
            load.fail(head.decode(errors="replace"))
        load.requests += 1
        writer.close()
    except OSError as error:
        load.fail(repr(error))


async def streams(port: int, ask: bytes, count: int, *, spread: float = 0.0) -> Load:
    """So many streams at once, begun over ``spread`` seconds."""
    load = Load()

    async def one(number: int) -> None:
        await asyncio.sleep(spread * number / count)
        await stream(port, ask, load)

    await asyncio.gather(*(one(number) for number in range(count)))
    return load


async def answers(port: int, ask: bytes, concurrency: int, seconds: float) -> Load:
    """Requests one after the other over so many connections."""
    load = Load()
    end = time.perf_counter() + seconds

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            writer.write(ask)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            load.requests += 1
            load.errors += not head.startswith(b"HTTP/1.1 200")
        writer.close()

    await asyncio.gather(*(one() for _ in range(concurrency)))
    return load
