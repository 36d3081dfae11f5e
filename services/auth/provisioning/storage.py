"""The LiteLLM budget of each user, as PostgreSQL records it. Every function raises ``DatabaseUnavailable``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.auth.provisioning.models import EXCEPTIONS, budget_name
from shared.stores.postgres import Database, Query

# The condition is that of a partial index, so that looking for the few that differ does not read all users.
_DIFFERS = f"litellm_budget is distinct from '{budget_name('')}' || budget_tier"

_EXCEPTED = "select user_id from exceptions where ends_at > now() and extra_nano > 0"
_WANTED = f"case when user_id in ({_EXCEPTED}) then '{EXCEPTIONS}' else '{budget_name('')}' || budget_tier end"
_OF = Query.text(
    f"select user_id, budget_tier, litellm_budget, {_WANTED} as wanted from users "  # noqa: S608
    f"where user_id = any(:users) and litellm_budget is distinct from {_WANTED}"
)
#: Users of one write of ``forget``.
_BATCH = 1000
# All users with an exception are looked at: they are few.
_NEXT = Query.text(
    f"select user_id from users where ({_DIFFERS} or user_id in ({_EXCEPTED})) and "  # noqa: S608
    f"litellm_budget is distinct from {_WANTED} and user_id > :after and budget_tier = any(:tiers) "
    "order by user_id limit :limit"
)
# If another replica gave the customer another budget meanwhile, the order is unknown: it is done again.
_REMEMBER = Query.text(
    """
    update users set litellm_budget = case
        when users.litellm_budget is not distinct from done.was or users.litellm_budget = done.budget
        then done.budget end
    from unnest(cast(:users as text[]), cast(:budgets as text[]), cast(:was as text[])) as done (user_id, budget, was)
    where users.user_id = done.user_id
    """
)
_FORGET = Query.text(
    "update users set litellm_budget = null where user_id in "
    "(select user_id from users where litellm_budget = :budget limit :limit)"
)


@dataclass(frozen=True, slots=True)
class Customer:
    """A user whose LiteLLM budget is not the one that it should have, ``budget``: that of its tier, or of exceptions.

    ``known`` is its recorded budget, if any.
    """

    user_id: str
    tier: str
    known: str | None
    budget: str


async def to_provision(database: Database, users: Sequence[str]) -> list[Customer]:
    """Those of the users whose LiteLLM budget is not that of their tier."""
    rows = await database.fetch(_OF, users=list(users))
    return [Customer(row["user_id"], row["budget_tier"], row["litellm_budget"], row["wanted"]) for row in rows]


async def find_to_provision(database: Database, tiers: Sequence[str], *, after: str, limit: int) -> list[str]:
    """User ids, in order, of the next users whose LiteLLM budget is not that of their tier.

    :param tiers: users of other tiers are skipped.
    """
    rows = await database.fetch(_NEXT, tiers=list(tiers), after=after, limit=limit)
    return [row["user_id"] for row in rows]


async def remember(database: Database, done: Sequence[Customer]) -> None:
    """Record that these customers have the budgets that they should have."""
    await database.execute(
        _REMEMBER,
        users=[customer.user_id for customer in done],
        budgets=[customer.budget for customer in done],
        was=[customer.known for customer in done],
    )


async def forget(database: Database, budget: str) -> None:
    """Record that no customer has this budget any more.

    :raises DatabaseUnavailable: PostgreSQL is down; some may be recorded, and some not.
    """
    while await database.execute(_FORGET, budget=budget, limit=_BATCH) == _BATCH:
        pass
