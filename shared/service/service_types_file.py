"""The file of service types, read again on SIGHUP and when it has changed."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

from shared.domain import service_types
from shared.domain.service_types import ConfigurationError, ServiceTypes
from shared.service.health import Check, CheckFailed
from shared.telemetry import logs
from shared.telemetry.metrics import Registry

#: Seconds between two looks at the file. A change counts when two looks see the same: it may still be being written.
_EVERY = 3.0

_log = logs.logger("service_types")


class ServiceTypesFile:
    """Keeps the table of a process as its file has it. A table that can't be used changes nothing."""

    def __init__(
        self, path: Path | None, table: ServiceTypes, registry: Registry, *, debug: bool, every: float = _EVERY
    ) -> None:
        self._every = every
        self._path, self._table, self._debug = path, table, debug
        self._failures = registry.counter(
            "service_types_reload_failures_total", "Tables of service types that were read again and refused."
        )
        self._enabled = registry.gauge("service_type_enabled", "0 if the row is switched off.", ("service_type",))
        self._enforced = registry.gauge(
            "service_type_enforced", "0 if budget and rates of the row refuse nobody.", ("service_type",)
        )
        self._asked = asyncio.Event()
        #: The content that was read last, taken or not, and what the last look saw.
        self._content: bytes | str | None = None
        self._seen: bytes | str | None = None
        self._fault: str | None = None
        self._show()
        table.on_change(self._show)

    def read_soon(self) -> None:
        """Read the file now, whether or not it has changed."""
        self._asked.set()

    async def run(self) -> None:
        """Look at the file forever."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every):
                    await self._asked.wait()
            await self._look()
            self._show()

    async def _look(self) -> None:
        asked = self._asked.is_set()
        self._asked.clear()
        content = await asyncio.to_thread(self._read)
        if asked or (content == self._seen and content != self._content):
            self._content = content
            await self._take(content)
        self._seen = content

    def _read(self) -> bytes | str:
        """The file's content, or the reason why it can't be read."""
        try:
            return service_types.read(self._path)
        except ConfigurationError as error:
            return str(error)

    async def _take(self, content: bytes | str) -> None:
        try:
            if isinstance(content, str):
                raise ConfigurationError(content)
            table = await asyncio.to_thread(
                service_types.parse, content, self._path, debug=self._debug, after=self._table
            )
        except ConfigurationError as error:
            self._fault = str(error)
            self._failures.inc()
            _log.error("service_types_refused", reason=self._fault)
            return
        self._fault = None
        before = dict(self._table.by_name)
        if self._table.take(table):
            changed = sorted(name for name, row in table.by_name.items() if before.get(name) != row)
            _log.info("service_types_taken", changed=changed)

    def _show(self) -> None:
        now = time.time()
        for name, row in self._table.by_name.items():
            self._enabled.set(int(row.enabled), name)
            self._enforced.set(int(row.enforces(now)), name)

    def checks(self) -> list[Check]:
        """The readiness checks of the table."""
        return [
            Check("service_types", self._usable, required=False),
            Check("enforcement", self._enforcing, required=False),
        ]

    async def _usable(self) -> None:
        """:raises CheckFailed: the newest table was refused."""
        if self._fault is not None:
            raise CheckFailed(self._fault)

    async def _enforcing(self) -> None:
        """:raises CheckFailed: budget and rates of a row refuse nobody."""
        rows = self._table.unenforced(time.time())
        if rows:
            until = (
                f"{row.name} until {datetime.fromtimestamp(row.enforce_until, UTC):%Y-%m-%dT%H:%M:%SZ}" for row in rows
            )
            raise CheckFailed(f"budget and rates refuse nobody: {', '.join(until)}")


SERVICE_TYPES_FILE = web.AppKey("service_types_file", ServiceTypesFile)
