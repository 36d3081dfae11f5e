"""Exa's search.

What it imitates, with the source:

    POST /search, ``numResults``, ``contents.text``;    docs.exa.ai/reference/search, as BerriAI/litellm 1.106.2 sends
    ``results`` with ``title``, ``url``, ``text`` and   and reads it: litellm/llms/exa_ai/search/transformation.py
    ``publishedDate``, which may be missing

Where it differs on purpose: every query finds the same pages, the second of them without a date.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from tests.doubles.providers.server import ProviderDouble, Refused

PUBLISHED = "2026-11-01T00:00:00.000Z"


class ExaDouble(ProviderDouble):
    path = "/search"

    async def answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body.get("query"):
            raise Refused("query must not be empty")
        found = [
            {
                "id": f"https://example.org/{number}",
                "title": f"Page {number}",
                "url": f"https://example.org/{number}",
                **({} if number == 1 else {"publishedDate": PUBLISHED}),
                "text": f"About {body['query']}" if body.get("contents", {}).get("text") else "",
            }
            for number in range(body.get("numResults", 10))
        ]
        return web.json_response({"requestId": "r", "results": found, "costDollars": {"total": 0.005}})

    def refusal(self, message: str) -> dict[str, Any]:
        return {"error": message}
