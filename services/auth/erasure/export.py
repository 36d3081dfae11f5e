"""Everything that is held about an identity, as JSON, a page at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import web

from services.auth.erasure.storage import ABOUT_SUBJECT, IN_RANGE
from shared.domain.identity import Credential, user_id
from shared.domain.service_types import ServiceTypes
from shared.errors import NotFound
from shared.state import layout
from shared.stores.postgres import Database, Query
from shared.stores.redis import Client, needed

_PAGE = 1000
#: Each table that may name an identity, and its rows about one. The ledger is read in pages.
HELD = {
    "users": "identity = :identity",
    "identities": "identity = :identity",
    "devices": "key_id = :identity",
    "exceptions": IN_RANGE,
    "revocations": IN_RANGE,
    "redis_changes": "identity = :identity",
    "refusals": IN_RANGE,
    "audit_log": ABOUT_SUBJECT,
    "user_spend": IN_RANGE,
    "ledger": IN_RANGE,
}
_ROWS = {
    table: Query.text(f"select to_jsonb(t) as row from {table} as t where {condition}")  # noqa: S608  ours
    for table, condition in HELD.items()
    if table != "ledger"
}
_LEDGER = Query.text(
    f"""
    select to_jsonb(t) as row, user_id, admitted_at, id from ledger as t
    where {IN_RANGE} and (user_id, admitted_at, id) > (:user_id, cast(:at as timestamptz), :id)
    order by user_id, admitted_at, id limit :limit
    """  # noqa: S608  ours
)

ReadCache = Callable[[str], Awaitable[Sequence[Any]]]


class Exports:
    def __init__(
        self, database: Database, jobs: Database, redis: Client, service_types: ServiceTypes, *, read_fxa: ReadCache
    ) -> None:
        """
        :param jobs: connections on which a statement may take longer than on those of a request.
        :param read_fxa: the cached verifications of an FxA uid; raises DependencyUnavailable.
        """
        self._database, self._jobs, self._redis = database, jobs, redis
        self._rows, self._read_fxa = service_types.by_name, read_fxa

    async def export(self, identity: str) -> AsyncIterator[bytes]:
        """JSON text in pieces; the first comes when everything but the ledger is known.

        :raises NotFound: nothing is held.
        :raises DependencyUnavailable: a dependency could not be asked, at any piece.
        """
        if "\0" in identity:
            raise NotFound
        tables = {
            table: [one["row"] for one in await self._database.fetch(query, identity=identity)]
            for table, query in _ROWS.items()
        }
        redis = await self._in_redis(identity)
        page = await self._ledger(identity, ("", "-infinity", ""))
        if not (any(tables.values()) or any(redis.values()) or page):
            raise NotFound("There is nothing about this identity.")
        service_types = sorted({*self._rows, *(user["service_type"] for user in tables["users"])})
        users = [user_id(identity, name) for name in service_types]
        whole = {
            "identity": identity,
            "exported_at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "redis": redis,
            "litellm": {
                "customers": users,
                "tables": {"LiteLLM_SpendLogs": "end_user", "LiteLLM_DailyEndUserSpend": "end_user_id"},
            },
            "postgresql": tables,
        }
        yield msgspec.json.encode(whole)[: -len(b"}}")] + b',"ledger":['
        begun = False
        while page:
            yield (b"," if begun else b"") + b",".join(msgspec.json.encode(one["row"]) for one in page)
            begun, last = True, page[-1]
            page = await self._ledger(identity, (last["user_id"], last["admitted_at"], last["id"]))
        yield b"]}}\n"

    async def _ledger(self, identity: str, after: tuple[str, Any, str]) -> list[dict[str, Any]]:
        name, at, row_id = after
        return await self._jobs.fetch(_LEDGER, identity=identity, user_id=name, at=at, id=row_id, limit=_PAGE)

    async def _in_redis(self, identity: str) -> dict[str, Any]:
        keys = layout.of_identity(identity)
        found: dict[str, Any] = {}
        with needed():
            found[keys.identity(identity)] = _text(await self._redis.hgetall(keys.identity(identity)))
            for name in self._rows:
                user = user_id(identity, name)
                found[keys.user(user)] = _text(await self._redis.hgetall(keys.user(user)))
                for window in (keys.requests_window(user), keys.tokens_window(user)):
                    members: list[Any] = await self._redis.zrange(window, 0, -1)
                    found[window] = [member.decode() for member in members]
        if Credential.of(identity) is Credential.FXA:
            found["fxa"] = await self._read_fxa(identity)
        return {key: value for key, value in found.items() if value}


EXPORTS = web.AppKey("exports", Exports)


def _text(fields: dict[Any, Any]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields.items()}
