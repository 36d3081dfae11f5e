"""The quantities that a number of daily users needs: the arithmetic of CAPACITY.md.

    python deploy/capacity.py [USERS...]

Change the figures below to your own measurements (``make bench``) and your own users, and run it again.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True, slots=True)
class Habits:
    """The habits of users. Look at ``chat_tokens_per_request`` and ``chat_completion_latency_seconds`` for yours."""

    requests_per_day: float = 20
    exchanges_per_day: float = 8  # a token lasts five minutes
    app_attest_share: float = 0.5  # of the exchanges; the others are JWTs of FxA
    events_per_answer: float = 300
    seconds_per_answer: float = 15
    peak: float = 4  # the busiest second, beside the mean of the day


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of CPU, or what the name says. CAPACITY.md says how each was measured."""

    gateway_request: float = 2.0e-3
    gateway_event: float = 20e-6
    gateway_bytes: float = 110 * 2**20
    stream_bytes: float = 35 * 2**10
    app_attest_exchange: float = 4.4e-3
    fxa_exchange: float = 2.3e-3
    litellm_request: float = 7.0e-3
    litellm_event: float = 0.9e-3
    redis_request: float = 140e-6  # three scripts: admit, settle, acknowledge
    redis_renewal: float = 10e-6
    redis_idle: float = 0.9e-3  # what each gateway asks for by itself, per second
    redis_totals: float = 5.7e-3  # reading the total budgets, by one gateway for all, per second
    redis_exchange: float = 40e-6
    redis_user_bytes: float = 1_350
    redis_stream_bytes: float = 775
    ledger_row_bytes: float = 477
    user_day_bytes: float = 170  # the sum of a user's day
    ledger_row: float = 60e-6  # of PostgreSQL and the writer together, in batches
    user_bytes: float = 610


@dataclass(frozen=True, slots=True)
class Plan:
    busy: float = 0.6  # share of a core that is planned with
    streams_per_gateway: float = 1_000  # the HPA's target
    least: int = 2
    ledger_days: float = 30
    sum_days: float = 62  # what budgets are rebuilt from, whatever is kept of the ledger
    connections_per_process: float = 10  # DATABASE_POOL_SIZE


def needed(users: float, habits: Habits, costs: Costs, plan: Plan) -> dict[str, float]:
    """Quantities at the peak, by name."""
    requests = users * habits.requests_per_day / 86_400 * habits.peak
    exchanges = users * habits.exchanges_per_day / 86_400 * habits.peak
    streams = requests * habits.seconds_per_answer
    gateway_cpu = requests * (costs.gateway_request + habits.events_per_answer * costs.gateway_event)
    share = habits.app_attest_share
    auth_cpu = exchanges * (share * costs.app_attest_exchange + (1 - share) * costs.fxa_exchange)
    litellm_cpu = requests * (costs.litellm_request + habits.events_per_answer * costs.litellm_event)
    gateways = max(plan.least, ceil(gateway_cpu / plan.busy), ceil(streams / plan.streams_per_gateway))
    auths = max(plan.least, ceil(auth_cpu / plan.busy))
    redis_cpu = (
        requests * costs.redis_request
        + exchanges * costs.redis_exchange
        + streams / 10 * costs.redis_renewal
        + gateways * costs.redis_idle
        + costs.redis_totals
    )
    ledger_cpu = requests * costs.ledger_row
    ledger_day = habits.requests_per_day * costs.ledger_row_bytes
    return {
        "requests a second": requests,
        "exchanges a second": exchanges,
        "open streams": streams,
        "gateway: cores": gateway_cpu,
        "gateway: processes": gateways,
        "gateway: MiB of each": (costs.gateway_bytes + streams / gateways * costs.stream_bytes) / 2**20,
        "auth: cores": auth_cpu,
        "auth: processes": auths,
        "LiteLLM: cores": litellm_cpu,
        "LiteLLM: workers": max(plan.least, ceil(litellm_cpu / plan.busy)),
        "LiteLLM: % of all cores": 100 * litellm_cpu / (litellm_cpu + gateway_cpu + auth_cpu + redis_cpu + ledger_cpu),
        "Redis: cores": redis_cpu,
        "Redis: shards": ceil(redis_cpu / plan.busy),
        "Redis: GiB": (users * costs.redis_user_bytes + streams * costs.redis_stream_bytes) / 2**30,
        "PostgreSQL: ledger rows a second": requests,
        "PostgreSQL: cores for them": ledger_cpu,
        "PostgreSQL: GiB of ledger a day": users * ledger_day / 2**30,
        "PostgreSQL: GiB of users' sums a day": users * costs.user_day_bytes / 2**30,
        "PostgreSQL: GiB in total": users
        * (ledger_day * plan.ledger_days + costs.user_day_bytes * plan.sum_days + costs.user_bytes)
        / 2**30,
        "PostgreSQL: connections": (gateways + auths) * plan.connections_per_process,
    }


def shown(number: float) -> str:
    digits = 0 if number >= 10 or number == int(number) else 1 if number >= 1 else 2
    return f"{number:,.{digits}f}"


def table(users: list[float]) -> str:
    """Markdown: a row of each quantity, a column of each number of users."""
    columns = [needed(number, Habits(), Costs(), Plan()) for number in users]
    lines = ["| at the peak | " + " | ".join(f"{number:,.0f} users" for number in users) + " |"]
    lines.append("|---" * (len(users) + 1) + "|")
    lines += [f"| {name} | " + " | ".join(shown(column[name]) for column in columns) + " |" for name in columns[0]]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table([float(number) for number in sys.argv[1:]] or [1e3, 1e5, 1e7]))
