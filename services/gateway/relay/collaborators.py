"""What serving a paid operation needs, set by the app."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from aiohttp import web

from services.gateway.relay.answers import Answers
from services.gateway.relay.bodies import Bodies
from services.gateway.relay.config import RelayConfig
from services.gateway.relay.metrics import RelayMetrics
from services.gateway.relay.open_requests import OpenRequests
from services.gateway.relay.operation import Models, PaidOperation
from services.gateway.upstream.client import LiteLLM

if TYPE_CHECKING:
    from services.gateway.budget.charging import Charge
    from services.gateway.budget.models import Ask, Delivery, Reservation
    from services.gateway.tokens.models import Principal
    from shared.errors import ServiceError


class Budgets(Protocol):
    """The budgets, as the relay uses them."""

    async def admit(self, ask: Ask) -> Reservation:
        """Reserve the worst case.

        :raises GatewayError: it is refused.
        :raises DependencyUnavailable: it could not be decided.
        """

    async def check(self, principal: Principal) -> None:
        """
        :raises GatewayError: the user is blocked, or the token revoked.
        :raises DependencyUnavailable: it could not be decided.
        """

    def settle(self, reservation: Reservation, delivery: Delivery) -> Charge:
        """Charge what was consumed, exactly once; never raises or waits."""


class Refusals(Protocol):
    """The record of refused requests, for operators."""

    def add(
        self, error: ServiceError, *, request_id: str, user_id: str | None, service_type: str, model: str | None
    ) -> None:
        """Note a request that is answered with an error; never raises or waits."""


@dataclass(frozen=True, slots=True)
class Collaborators:
    """What all paid operations share. ``operations`` are they themselves, by their paths."""

    operations: Mapping[str, PaidOperation[Any, Any]]
    config: RelayConfig
    models: Models
    budgets: Budgets
    litellm: LiteLLM
    metrics: RelayMetrics
    open_requests: OpenRequests
    bodies: Bodies
    refusals: Refusals
    answers: Answers = field(default_factory=Answers)


COLLABORATORS = web.AppKey("collaborators", Collaborators)
