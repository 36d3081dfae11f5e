"""The OpenAPI document of the gateway against the gateway: requests made from it meet nothing undocumented."""

from __future__ import annotations

import asyncio

from tests.openapi import try_all
from tests.system.clients import Caller


async def test_requests_made_from_the_document_get_what_it_says(caller: Caller) -> None:
    _, token = await caller.account()
    url = caller.system.gateway_url
    document = (await caller.ask("GET", f"{url}/openapi.json")).json()
    tried = await asyncio.to_thread(try_all, document, url, {"Authorization": f"Bearer {token}"})
    assert {path for _, path in tried} == set(document["paths"])
