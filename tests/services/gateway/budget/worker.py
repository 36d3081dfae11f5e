"""A gateway process for the tests, reduced to its budgets: clients of one user that ask, stream and settle.

``python -m tests.services.gateway.budget.worker JSON``; prints ``ready``, begins when told to by a line of input, and
prints one JSON object when it ends by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
from collections import Counter
from typing import Any

import structlog
import uvloop

from services.gateway.budget.models import Delivery, Reservation, Timings, Usage
from services.gateway.budget.services import Budgets
from services.gateway.errors import BudgetExceeded, RequestTooLarge
from shared.errors import DependencyUnavailable
from tests.services.gateway.budget.support import BudgetReserved, ask, opened, principal, row, rows


class Clients:
    def __init__(self, budgets: Budgets, config: dict[str, Any]) -> None:
        self.budgets, self.config = budgets, config
        self.who = principal(row(**config["row"]))
        self.seen: Counter[str] = Counter()
        self.random = random.Random(config["seed"])
        self.relayed: dict[str, int] = {}

    async def client(self) -> None:
        """Asks until it's served, or the budget is spent."""
        while True:
            wanted = ask(
                self.who, prompt_bound=self.config["prompt"], limit=self.random.randint(1, 2 * self.config["limit"])
            )
            try:
                reservation = await self.budgets.admit(wanted)
            except (BudgetExceeded, RequestTooLarge):
                self.seen["exceeded"] += 1
                return
            except (BudgetReserved, DependencyUnavailable) as refusal:
                self.seen[refusal.code] += 1
                await asyncio.sleep(self.random.uniform(0.01, 0.06))
                continue
            await self.stream(reservation)
            self.seen["served"] += 1
            if not self.config["forever"]:
                return

    async def stream(self, reservation: Reservation) -> None:
        delivery = Delivery("abort", sent=False)
        try:
            delivery = await self.deliver(reservation)
        finally:
            self.budgets.settle(reservation, self.partial(reservation, delivery))

    def partial(self, reservation: Reservation, delivery: Delivery) -> Delivery:
        """What a stream that was cut or cancelled has to show for."""
        if delivery.usage is not None or reservation.id not in self.relayed:
            return delivery
        return Delivery("abort", sent=True, relayed_bytes=self.relayed.pop(reservation.id))

    async def deliver(self, reservation: Reservation) -> Delivery:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.config["upstream"])
        try:
            self.relayed[reservation.id] = 0
            request = {"id": reservation.id, "prompt": self.config["prompt"], "grant": reservation.grant}
            writer.write(json.dumps(request).encode() + b"\n")
            patience = self.random.randint(1, 40) if self.random.random() < self.config["vanish"] else 10**9
            while line := await reader.readline():
                if line.startswith(b"usage"):
                    _, prompt, completion = line.split()
                    self.relayed.pop(reservation.id)
                    return Delivery("success", sent=True, usage=Usage(int(prompt), int(completion)))
                self.relayed[reservation.id] += len(line) - 1
                writer.write(b"\n")
                patience -= 1
                if patience == 0:
                    break
            return Delivery("abort", sent=True)
        except OSError:
            return Delivery("error", sent=reservation.id in self.relayed)
        finally:
            writer.close()


async def main(config: dict[str, Any]) -> None:
    service_types = rows(row(**config["row"]))
    timings = Timings(**config["timings"])
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with opened(config["redis"], config["postgres"], service_types, timings) as (budgets, _, _):
        clients = Clients(budgets, config)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        work = asyncio.gather(*(clients.client() for _ in range(config["clients"])))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([work, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not work.done():
            work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        seen = clients.seen
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    uvloop.run(main(json.loads(sys.argv[1])))
