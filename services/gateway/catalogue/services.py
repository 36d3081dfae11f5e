"""The models that may be asked, which are read from LiteLLM periodically."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from services.gateway.catalogue import model_info
from services.gateway.catalogue.metrics import CatalogueMetrics
from services.gateway.catalogue.prices import PricedModel, price_all
from shared.domain.service_types import ServiceTypes
from shared.errors import ServiceError
from shared.service import background
from shared.telemetry import logs
from shared.telemetry.metrics import Registry

_log = logs.logger("budget")

OnChange = Callable[[tuple[str, ...]], None]


class Catalogue:
    """The models of LiteLLM, read again in the background; while LiteLLM is down, the last reading holds."""

    def __init__(
        self,
        fetch: Callable[[], Awaitable[bytes]],
        service_types: ServiceTypes,
        metrics: CatalogueMetrics,
        on_change: OnChange,
    ) -> None:
        """
        :param fetch: the body of LiteLLM's ``/model/info``; raises ``ServiceError`` or ``OSError``.
        :param on_change: called with the models' names when these have changed.
        """
        self._fetch, self._rows, self._metrics, self._on_change = fetch, service_types.models, metrics, on_change
        self._entries: Sequence[Mapping[str, Any]] = ()
        self._unreadable: Mapping[str, str] = {}
        self._models: dict[str, PricedModel] = {}
        self._refused: dict[str, str] = {}
        self.loaded = False
        service_types.on_change(self._price)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        fetch: Callable[[], Awaitable[bytes]],
        service_types: ServiceTypes,
        registry: Registry,
        *,
        every: float = 60,
        retry: float = 1,
        on_change: OnChange = lambda _names: None,
    ) -> AsyncIterator[Catalogue]:
        """A catalogue that has been read once if LiteLLM answered, and is read again ``every`` seconds.

        :param retry: seconds between attempts at the first reading.
        """
        catalogue = cls(fetch, service_types, CatalogueMetrics(registry), on_change)
        await catalogue._read()
        async with background.running(registry, models=lambda: catalogue._keep(every, retry)):
            yield catalogue

    async def _keep(self, every: float, retry: float) -> None:
        while True:
            await asyncio.sleep(every if self.loaded else retry)
            await self._read()

    def get(self, name: str) -> PricedModel | None:
        """The model of that name; None when LiteLLM doesn't have it or it has no price."""
        return self._models.get(name)

    def names(self) -> tuple[str, ...]:
        """All models that may be asked."""
        return tuple(self._models)

    def refused(self) -> Mapping[str, str]:
        """The models that may not be asked, by name, and the reason why."""
        off = {name: "its row switches it off" for name, row in self._rows.items() if not row.enabled}
        return {**self._refused, **off}

    async def _read(self) -> None:
        """Read the models. Nothing changes if LiteLLM can't be asked or its answer makes no sense."""
        try:
            self._entries, self._unreadable = model_info.read(await self._fetch())
        except (ServiceError, OSError, TimeoutError, ValueError) as error:
            _log.warning("models_not_read", error=f"{type(error).__name__}: {error}"[:200])
            return
        self.loaded = True
        self._price()

    def _price(self) -> None:
        """Price the models of the last reading by the current rows."""
        models, refused = price_all(self._entries, self._rows, self._unreadable)
        for name, reason in refused.items():
            if self._refused.get(name) != reason:
                _log.warning("model_refused", model=name[:256], reason=reason[:256])
        changed = models.keys() != self._models.keys()
        self._models, self._refused = models, refused
        self._metrics.show(len(models), refused)
        if changed:
            self._on_change(self.names())
