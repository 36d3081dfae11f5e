"""Service types that tests vary, as values and as rows of a file."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from msgspec.structs import replace

from shared.domain.service_types import ServiceType, ServiceTypes, load


@cache
def development() -> ServiceTypes:
    """The table of a local run."""
    return load(None, debug=True)


def service_type(name: str = "ai", **changes: Any) -> ServiceType:
    """The development table's ``ai`` under another name and with other values."""
    return replace(development().by_name["ai"], name=name, **changes)


def toml(name: str = "ai", **changes: Any) -> str:
    """A row of a file: 0.10 USD a day for Firefox accounts and all models, unless changed."""
    fields: dict[str, Any] = {
        "name": name,
        "max_budget": "0.10",
        "duration": "1d",
        "rpm": 100,
        "tpm": 100_000,
        "models": ["*"],
        "credentials": ["fxa"],
        "fxa_scopes": ["profile:uid"],
        "fxa_client_ids": ["*"],
        **changes,
    }
    return "[[service_type]]\n" + "".join(f"{field} = {json.dumps(value)}\n" for field, value in fields.items())
