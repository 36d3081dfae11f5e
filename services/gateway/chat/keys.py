"""The collaborators of the views of chat, set by the app."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from aiohttp import web

from services.gateway.chat.bodies import Bodies
from services.gateway.chat.config import ChatConfig
from services.gateway.chat.metrics import ChatMetrics
from services.gateway.chat.open import OpenRequests
from services.gateway.upstream.client import LiteLLM

if TYPE_CHECKING:
    from services.gateway.budget.models import Ask, Delivery, Reservation
    from services.gateway.catalogue.prices import PricedModel
    from services.gateway.tokens.models import Principal


class Budgets(Protocol):
    """The budgets, as chat uses them."""

    async def admit(self, ask: Ask) -> Reservation:
        """Reserve the worst case.

        :raises BudgetExceeded, BudgetReserved, RateLimited, UserBlocked, InvalidToken: it is refused.
        :raises DependencyUnavailable: it could not be decided.
        """

    def settle(self, reservation: Reservation, delivery: Delivery) -> int:
        """Charge what was consumed, exactly once. Returns the charge in nano-dollars; never raises or waits."""


class Models(Protocol):
    """The models that LiteLLM serves, with their prices."""

    @property
    def loaded(self) -> bool:
        """Whether the models have been read yet."""

    def get(self, name: str) -> PricedModel | None: ...


@dataclass(frozen=True, slots=True)
class Chat:
    """The collaborators of a chat request. ``authenticate`` raises InvalidToken or DependencyUnavailable."""

    config: ChatConfig
    authenticate: Callable[[web.Request], Awaitable[Principal]]
    models: Models
    budgets: Budgets
    litellm: LiteLLM
    metrics: ChatMetrics
    open_requests: OpenRequests
    bodies: Bodies


CHAT = web.AppKey("chat", Chat)
