"""A client of LiteLLM's admin API: budgets, customers, spend, virtual keys; with the master key.

    LiteLLMError
    ├── LiteLLMUnavailable     no instance gave a usable answer: nothing is known
    ├── MasterKeyRefused       LiteLLM refuses the master key
    ├── NoDatabase             LiteLLM runs without a database: it has no customers, budgets, keys
    └── LiteLLMRefused         it answered, and refused this one request

Messages are for operators and hold no secret. Errors are told apart by status and type, never by LiteLLM's prose,
which differs between versions. Every call but ``make_key`` may be repeated, also by several replicas at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from http import HTTPStatus
from typing import Any

import aiohttp
from yarl import URL

from services.auth.provisioning.models import Budget
from shared.domain.money import NANO
from shared.service import fetch
from shared.service.fetch import NoAnswer

#: Largest answer that is read; a page of spend is the largest.
MAX_ANSWER_BYTES = 16 * 1024 * 1024
#: The routes of LiteLLM that a gateway's key may use, one by one: the group ``llm_api`` lacks /model/info in some
#: versions, and has a hundred routes that the gateway never uses.
GATEWAY_ROUTES = ("/chat/completions", "/v1/chat/completions", "/v1/models", "/model/info")

#: Statuses of an instance that can't answer now, or of a proxy in front of it.
_BUSY = (408, 429, 502, 503, 504)
_USERS_PER_QUERY = 50
_ROWS_PER_PAGE = 1000
_KEY = re.compile(r"[A-Za-z0-9._-]{16,256}")


class LiteLLMError(Exception):
    """LiteLLM did not fulfil a request."""


class LiteLLMUnavailable(LiteLLMError):
    pass


class MasterKeyRefused(LiteLLMError):
    def __init__(self) -> None:
        super().__init__("LiteLLM refuses the master key")


class NoDatabase(LiteLLMError):
    def __init__(self) -> None:
        super().__init__("LiteLLM runs without a database")


class LiteLLMRefused(LiteLLMError):
    pass


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: Any

    @property
    def ok(self) -> bool:
        return self.status == HTTPStatus.OK

    def refused(self, what: str) -> LiteLLMRefused:
        return LiteLLMRefused(f"LiteLLM answered {self.status} to {what}")


class LiteLLMAdmin:
    """The admin API of LiteLLM.

    Of several instances the first one that answers is used, and asked first from then on. Every method raises
    ``LiteLLMError`` when it could not do its work.
    """

    def __init__(
        self, session: aiohttp.ClientSession, base_urls: Sequence[str], master_key: str, *, timeout: float = 5.0
    ) -> None:
        """:param timeout: seconds for one answer of one instance."""
        self._session = session
        self._instances = [URL(url.rstrip("/")) for url in base_urls]
        self._headers = {"Authorization": f"Bearer {master_key}", "Accept": "application/json"}
        self._timeout = timeout
        self._first = 0

    @classmethod
    @asynccontextmanager
    async def open(
        cls, base_urls: Sequence[str], master_key: str, *, timeout: float = 10.0
    ) -> AsyncIterator[LiteLLMAdmin]:
        """A client with its own session, for commands."""
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
            yield cls(session, base_urls, master_key, timeout=timeout)

    async def budgets(self, names: Sequence[str]) -> dict[str, Budget]:
        """Those of the named budgets that exist."""
        answer = await self._ask("POST", "/budget/info", {"budgets": list(names)})
        if not answer.ok or not isinstance(answer.body, list):
            raise await self._why(answer, "/budget/info")
        found = (_budget(row) for row in answer.body)
        return {budget.name: budget for budget in found if budget is not None}

    async def put_budget(self, budget: Budget, *, exists: bool) -> None:
        """Make a budget, or update it.

        :param exists: as last seen; a change in the meantime does no harm.
        """
        body = {"budget_id": budget.name, "max_budget": budget.max_budget_usd, "budget_duration": budget.duration}
        await self._put("/budget", body, exists)

    async def put_customer(self, user_id: str, budget: str, *, exists: bool) -> None:
        """Make a user a customer with a budget, or give a customer another budget.

        A user may already be a customer: LiteLLM adds users for whom it counted spend, without a budget. So an
        existing customer gets its budget too.

        :param exists: as in ``put_budget``.
        """
        await self._put("/customer", {"user_id": user_id, "budget_id": budget}, exists)

    async def delete_customer(self, user_id: str) -> None:
        """Delete a customer, if it is one. The rows of its requests stay: LiteLLM's API deletes none."""
        # One at a time: of several, LiteLLM deletes none if one is missing (BerriAI/litellm, customer_endpoints.py)
        answer = await self._ask("POST", "/customer/delete", {"user_ids": [user_id]})
        if not answer.ok and answer.status != HTTPStatus.NOT_FOUND:
            raise await self._why(answer, "/customer/delete")

    async def _put(self, what: str, body: dict[str, Any], exists: bool) -> None:
        first, second = (f"{what}/update", f"{what}/new") if exists else (f"{what}/new", f"{what}/update")
        answer = await self._ask("POST", first, body)
        if _done(answer):
            return
        # 400 and 409: it exists. 404 and ``null``: it does not. Anything else is another error.
        if answer.status not in (HTTPStatus.OK, HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
            raise answer.refused(first)
        answer = await self._ask("POST", second, body)
        if not _done(answer):
            raise answer.refused(second)

    async def spend(self, users: Sequence[str], start: date, end: date) -> dict[str, Decimal]:
        """What users spent in USD on the days (UTC) from ``start`` to ``end``, both included, by LiteLLM's count.

        LiteLLM counts only requests that it saw to the end, some 15 s late. Users without spend are absent.
        """
        total: dict[str, Decimal] = {}
        for begin in range(0, len(users), _USERS_PER_QUERY):
            batch = users[begin : begin + _USERS_PER_QUERY]
            page, more = 1, True
            while more:
                more = await self._add_spend(total, frozenset(batch), start, end, page)
                page += 1
        return total

    async def _add_spend(
        self, total: dict[str, Decimal], users: frozenset[str], start: date, end: date, page: int
    ) -> bool:
        """Add one page. Returns whether there are more."""
        answer = await self._ask(
            "GET",
            "/customer/daily/activity",
            query={
                "end_user_ids": ",".join(sorted(users)),
                "start_date": start.isoformat(),
                "end_date": end.isoformat(),
                "page": str(page),
                "page_size": str(_ROWS_PER_PAGE),
            },
        )
        if not answer.ok:
            raise answer.refused("/customer/daily/activity")
        try:
            for day in answer.body["results"]:
                for user, entity in day["breakdown"]["entities"].items():
                    if user in users:
                        total[user] = total.get(user, Decimal(0)) + Decimal(entity["metrics"]["spend"])
            return bool(answer.body["metadata"]["has_more"])
        except (KeyError, TypeError, AttributeError, ValueError, InvalidOperation) as error:
            raise LiteLLMUnavailable("LiteLLM's spend has an unknown shape") from error

    async def make_key(self, alias: str) -> str:
        """Make a virtual key for the gateways: all models, GATEWAY_ROUTES only, without expiry.

        It has no budget and no rate, which would hold for all users together, and no user or team: each request
        names its end user in ``user``.

        :raises LiteLLMError: it was not made; after LiteLLMUnavailable it may have been.
        """
        body = {"key_alias": alias, "models": [], "allowed_routes": list(GATEWAY_ROUTES)}
        answer = await self._ask("POST", "/key/generate", body, repeatable=False)
        if not answer.ok:
            raise await self._why(answer, "/key/generate")
        key = answer.body.get("key") if isinstance(answer.body, dict) else None
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise answer.refused("/key/generate, without a key")
        return key

    async def _why(self, answer: _Answer, what: str) -> LiteLLMError:
        """The error of an answer. A missing database has many wordings but one sign."""
        health = await self._ask("GET", "/health/readiness")
        if isinstance(health.body, dict) and health.body.get("db") == "Not connected":
            return NoDatabase()
        return answer.refused(what)

    async def _ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        repeatable: bool = True,
    ) -> _Answer:
        failure = LiteLLMUnavailable("no instance is configured")
        for offset in range(len(self._instances)):
            index = (self._first + offset) % len(self._instances)
            try:
                answer = await self._send(method, self._instances[index].joinpath(path[1:]), body, query)
            except (NoAnswer, LiteLLMUnavailable) as error:
                failure = self._unavailable(error) if isinstance(error, NoAnswer) else error
                if repeatable or (isinstance(error, NoAnswer) and not error.sent):
                    continue
                break
            self._first = index
            if answer.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                raise MasterKeyRefused
            if _type(answer.body) == "no_db_connection":
                raise NoDatabase
            return answer
        raise failure

    async def _send(self, method: str, url: URL, body: Any, query: Mapping[str, str] | None) -> _Answer:
        """
        :raises NoAnswer: no whole answer within the bounds.
        :raises LiteLLMUnavailable: an answer that LiteLLM itself does not give.
        """
        answer = await fetch.ask(
            self._session,
            method,
            url,
            limit=MAX_ANSWER_BYTES,
            timeout=self._timeout,
            json=body,
            params=query,
            headers=self._headers,
        )
        status = answer.status
        if status in _BUSY or HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            raise LiteLLMUnavailable(f"LiteLLM answered {status}")
        try:
            return _Answer(status, json.loads(answer.body, parse_float=Decimal))
        except (ValueError, RecursionError) as error:
            raise LiteLLMUnavailable(f"LiteLLM answered {status} without JSON") from error

    def _unavailable(self, error: NoAnswer) -> LiteLLMUnavailable:
        if not error.sent:
            return LiteLLMUnavailable("LiteLLM takes no connection")
        if error.reason == "timeout":
            return LiteLLMUnavailable(f"no answer of LiteLLM within {self._timeout:g} s")
        if error.reason == "too_large":
            return LiteLLMUnavailable("LiteLLM's answer is too large")
        return LiteLLMUnavailable("the connection to LiteLLM broke")


def _done(answer: _Answer) -> bool:
    """Whether it was done: an update of a missing budget is 200 with ``null``."""
    return answer.ok and answer.body is not None


def _type(body: Any) -> str | None:
    error = body.get("error") if isinstance(body, dict) else None
    kind = error.get("type") if isinstance(error, dict) else None
    return kind if isinstance(kind, str) else None


def _budget(row: Any) -> Budget | None:
    """A budget from a row of /budget/info; None for a row without a name."""
    if not isinstance(row, dict):
        return None
    name, amount, duration = row.get("budget_id"), row.get("max_budget"), row.get("budget_duration")
    if not isinstance(name, str):
        return None
    exact = round(amount * NANO) if isinstance(amount, int | Decimal) else -1
    return Budget(name, exact, duration if isinstance(duration, str) else "")
