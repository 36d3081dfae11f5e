"""What the tests of budgets share: rows, models, users, requests, and budgets with a short breath."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

from services.gateway.budget.models import Ask, Delivery, Timings, Usage
from services.gateway.budget.refusals import KINDS
from services.gateway.budget.services import Budgets
from services.gateway.catalogue.prices import PricedModel
from services.gateway.tokens.models import Principal
from shared.domain.service_types import ServiceType, ServiceTypes
from shared.state.refusals import Word
from shared.stores.postgres import Database, Query
from shared.telemetry.metrics import Registry
from tests.support.service_types import service_type

BudgetReserved = KINDS[Word.RESERVED]
FAST = Timings(lease=1.0, renew=0.2, flush=0.02, sweep=0.2, orphan=0.4, totals=0.1, drain=5)
#: 1000 nano-dollars per prompt token, 2000 per completion token.
MODEL = PricedModel("model", Decimal("0.000001"), Decimal("0.000002"))


def row(name: str = "ai", **changes: Any) -> ServiceType:
    """A service type without rate limits, of 0.10 USD a day."""
    values: dict[str, Any] = {
        "max_budget_nano": 100_000_000,
        "rpm": 0,
        "tpm": 0,
        "max_streams": 0,
        "purposes": ("chat",),
    }
    return service_type(name, **{**values, **changes})


def rows(*service_types: ServiceType, **changes: Any) -> ServiceTypes:
    """A table of these, or of one ``row``."""
    return ServiceTypes({one.name: one for one in service_types or (row(**changes),)}, {})


def principal(service_type: ServiceType | None = None, user: int = 1, jti: str = "jti") -> Principal:
    service_type = service_type or row()
    identity = f"{user:032x}"
    return Principal(f"{identity}:{service_type.name}", identity, service_type, jti, time.time() + 300)


def ask(who: Principal | None = None, **changes: Any) -> Ask:
    """A request of 100 prompt tokens and up to 1000 completion tokens: 2.1 million nano-dollars of ``MODEL``."""
    values: dict[str, Any] = {
        "id": uuid.uuid4().hex,
        "request_id": "client's own",
        "principal": who or principal(),
        "model": MODEL,
        "purpose": "chat",
        "prompt_bound": 100,
        "estimated_prompt_tokens": 25,
        "limit": 1000,
    }
    return Ask(**{**values, **changes})


def delivered(prompt: int = 10, completion: int = 20, outcome: str = "success") -> Delivery:
    """50,000 nano-dollars of ``MODEL`` by default."""
    return Delivery(outcome, sent=True, usage=Usage(prompt, completion))


async def spent(budgets: Budgets, who: Principal | None = None) -> int:
    return (await budgets.state(who or principal())).spent_nano


async def served(budgets: Budgets, who: Principal | None = None, by: Delivery | None = None) -> bool:
    """A request that is admitted, and costs nothing unless it is delivered."""
    budgets.settle(await budgets.admit(ask(who)), by or delivered(0, 0))
    return True


@contextlib.asynccontextmanager
async def opened(
    redis_url: str,
    postgres_url: str,
    service_types: ServiceTypes | None = None,
    timings: Timings = FAST,
    outbox_limit: int = 0,
) -> AsyncIterator[tuple[Budgets, Database, Registry]]:
    registry = Registry()
    async with (
        Database.connect(postgres_url) as database,
        Budgets.open(
            redis_url, database, service_types or rows(), registry, timings=timings, outbox_limit=outbox_limit
        ) as budgets,
    ):
        yield budgets, database, registry


async def ledger(database: Database) -> list[dict[str, Any]]:
    return await database.fetch(Query.text("select * from ledger order by admitted_at, id"))


async def total(database: Database) -> tuple[int, int]:
    """(rows, nano-dollars) of the whole ledger."""
    found = await database.fetch(Query.text("select count(*) as n, coalesce(sum(cost_nano), 0) as cost from ledger"))
    return int(found[0]["n"]), int(found[0]["cost"])
