"""A LiteLLM with a database, as far as its admin API goes. It misbehaves on demand.

A real aiohttp server. What it imitates, with the source; files are of BerriAI/litellm 1.106.2, below
litellm/proxy. tests/system/test_litellm_database.py asks the same of the real one with a database.

    a wrong key: 401 token_not_found_in_db, and without    auth/auth_checks.py, auth/user_api_key_auth.py
    a database 400 no_db_connection
    /budget/new: a second time 400; /budget/update of one  management_endpoints/budget_management_endpoints.py
    that isn't there: 200 ``null``; /budget/info: a list
    /customer/new: a second time 400, and with an unknown  management_endpoints/customer_endpoints.py
    budget 500 (a foreign key); /customer/update;
    /customer/delete: 404, and nothing, if one is missing
    /customer/daily/activity: rows of days, pages          management_endpoints/common_daily_activity.py
    /key/generate: an alias a second time is 400           management_endpoints/key_management_endpoints.py
    errors: message, type, param, code; or ``detail``      _types.py (ProxyException), FastAPI's HTTPException
    /health/readiness                                      health_endpoints/_health_endpoints.py

Where it differs on purpose: it knows one key, and of each row only the members that are used; ``fault`` breaks it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.support.serving import serve

MASTER_KEY = "sk-master-of-the-double"
Fault = Callable[[web.Request], Awaitable[web.Response]]


@dataclass
class LiteLLMAdminDouble:
    """``fault`` answers instead of it, while set; for one user alone if ``fault_for`` is one."""

    master_key: str = MASTER_KEY
    database: bool = True
    budgets: dict[str, dict[str, Any]] = field(default_factory=dict)
    customers: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: list[dict[str, Any]] = field(default_factory=list)
    spend: dict[str, list[tuple[str, float, int, int, int]]] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    fault: Fault | None = None
    fault_for: str | None = None
    page_size: int | None = None
    url: str = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[LiteLLMAdminDouble]:
        app = web.Application(middlewares=[self._gate])
        app.add_routes(
            [
                web.get("/health/readiness", self._readiness),
                web.post("/budget/info", self._budget_info),
                web.post("/budget/new", self._budget_new),
                web.post("/budget/update", self._budget_update),
                web.post("/customer/new", self._customer_new),
                web.post("/customer/update", self._customer_update),
                web.post("/customer/delete", self._customer_delete),
                web.get("/customer/daily/activity", self._activity),
                web.post("/key/generate", self._key),
            ]
        )
        async with serve(app) as self.url:
            yield self

    def budget_of(self, user: str) -> str | None:
        return self.customers[user]["budget_id"] if user in self.customers else None

    @web.middleware
    async def _gate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.calls[request.path] += 1
        if self.fault is not None:
            body = await request.json() if request.can_read_body else {}
            if self.fault_for is None or body.get("user_id") == self.fault_for:
                return await self.fault(request)
        if request.path == "/health/readiness":
            return await self._readiness(request)
        given = request.headers.get("Authorization", "")
        if given != f"Bearer {self.master_key}":
            if not self.database:
                return _error(400, "no_db_connection", "No connected db.")
            return _error(401, "token_not_found_in_db", "Authentication Error", "key")
        if not self.database:
            return web.json_response({"detail": {"error": "No db connected"}}, status=500)
        return await handler(request)  # type: ignore[no-any-return]

    async def _readiness(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "healthy", "db": "connected" if self.database else "Not connected"})

    async def _budget_info(self, request: web.Request) -> web.Response:
        names = (await request.json())["budgets"]
        if not names:
            return web.json_response({"detail": {"error": "Specify list of budget id's to query."}}, status=400)
        return web.json_response([self.budgets[name] for name in names if name in self.budgets])

    async def _budget_new(self, request: web.Request) -> web.Response:
        given = await request.json()
        if given["budget_id"] in self.budgets:
            return web.json_response(
                {"detail": {"error": f"Budget with id '{given['budget_id']}' already exists."}}, status=400
            )
        self.budgets[given["budget_id"]] = {"rpm_limit": None, "tpm_limit": None, **given}
        return web.json_response(self.budgets[given["budget_id"]])

    async def _budget_update(self, request: web.Request) -> web.Response:
        given = await request.json()
        if given["budget_id"] not in self.budgets:
            return web.json_response(None)
        self.budgets[given["budget_id"]] |= given
        return web.json_response(self.budgets[given["budget_id"]])

    async def _customer_new(self, request: web.Request) -> web.Response:
        given = await request.json()
        if given["user_id"] in self.customers:
            passed = f"passed user_id={given['user_id']}. Please pass a new user_id."
            return _error(400, "bad_request", f"Customer already exists, {passed}", "user_id")
        if given["budget_id"] not in self.budgets:
            return _error(500, "internal_server_error", "Foreign key constraint failed")
        self.customers[given["user_id"]] = given
        return web.json_response(given)

    async def _customer_update(self, request: web.Request) -> web.Response:
        given = await request.json()
        if given["user_id"] not in self.customers:
            return _error(404, "not_found", f"End User Id={given['user_id']} does not exist in db", "user_id")
        if given["budget_id"] not in self.budgets:
            return _error(500, "internal_server_error", "Foreign key constraint failed")
        self.customers[given["user_id"]] |= given
        return web.json_response(self.customers[given["user_id"]])

    async def _customer_delete(self, request: web.Request) -> web.Response:
        users = (await request.json())["user_ids"]
        if missing := [user for user in users if user not in self.customers]:
            return _error(404, "not_found", f"End User Id(s)={', '.join(missing)} do not exist in db", "user_ids")
        for user in users:
            del self.customers[user]
        return web.json_response({"deleted_customers": len(users), "message": "Successfully deleted customers"})

    async def _activity(self, request: web.Request) -> web.Response:
        """One row per user and day; a page has so many of them."""
        users = request.query["end_user_ids"].split(",")
        start, end = request.query["start_date"], request.query["end_date"]
        page, size = int(request.query["page"]), self.page_size or int(request.query["page_size"])
        rows = [(user, *day) for user in users for day in self.spend.get(user, []) if start <= day[0] <= end]
        results = []
        for user, date, spend, requests, prompt, completion in rows[(page - 1) * size : page * size]:
            metrics = {
                "spend": spend,
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
                "successful_requests": requests,
                "failed_requests": 0,
                "api_requests": requests,
            }
            entities = {user: {"metrics": metrics, "metadata": {"alias": None}}}
            results.append({"date": date, "metrics": metrics, "breakdown": {"entities": entities}})
        return web.json_response({"results": results, "metadata": {"page": page, "has_more": page * size < len(rows)}})

    async def _key(self, request: web.Request) -> web.Response:
        given = await request.json()
        if any(key["key_alias"] == given["key_alias"] for key in self.keys):
            return _error(
                400, "bad_request_error", f"Key with alias '{given['key_alias']}' already exists.", "key_alias"
            )
        self.keys.append(given)
        return web.json_response({**given, "key": f"sk-made-by-the-double-{len(self.keys)}"})


def _error(status: int, kind: str, message: str, param: str | None = None) -> web.Response:
    error = {"message": message, "type": kind, "param": param, "code": str(status)}
    return web.json_response({"error": error}, status=status)


async def html(_request: web.Request) -> web.Response:
    """What a load balancer in front of it may say."""
    return web.Response(status=200, text="<html>Sign in to the Wi-Fi</html>", content_type="text/html")


async def broken(_request: web.Request) -> web.Response:
    return _error(500, "internal_server_error", "something with your message in it")


async def busy(_request: web.Request) -> web.Response:
    return web.json_response({"detail": "too much"}, status=503)


async def hang(_request: web.Request) -> web.Response:
    """Takes the request, and never answers."""
    await asyncio.sleep(3600)
    return web.Response()
