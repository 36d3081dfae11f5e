"""The objects that serve paid operations, set by the app."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from services.gateway.budget.services import Budgets
from services.gateway.catalogue.services import Catalogue
from services.gateway.ledger.refusals import RefusalLog
from services.gateway.relay.answers import Answers
from services.gateway.relay.bodies import Bodies
from services.gateway.relay.metrics import RelayMetrics
from services.gateway.relay.open_requests import OpenRequests
from services.gateway.relay.operation import PaidOperation
from services.gateway.settings import GatewaySettings
from services.gateway.upstream.client import LiteLLM


@dataclass(frozen=True, slots=True)
class Collaborators:
    """The objects that all paid operations share, and the operations themselves by their paths."""

    operations: Mapping[str, PaidOperation[Any, Any]]
    settings: GatewaySettings
    catalogue: Catalogue
    budgets: Budgets
    litellm: LiteLLM
    metrics: RelayMetrics
    open_requests: OpenRequests
    bodies: Bodies
    refusals: RefusalLog
    answers: Answers = field(default_factory=Answers)


COLLABORATORS = web.AppKey("collaborators", Collaborators)
