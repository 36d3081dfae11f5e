"""The API of devices: /device."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import web

from services.auth.admin.access import callers
from services.auth.admin.api.models import Reason, RevokeRequest, body_of
from services.auth.admin.api.requests import (
    CHANGE,
    COMMON,
    CURSOR,
    LIMIT,
    MALFORMED,
    answer,
    changing,
    decode,
    limit,
    one_each,
    operation,
)
from services.auth.devices.operators import DEVICE_ADMIN
from services.auth.devices.operators_storage import Chosen
from services.auth.errors import ErrorBody, InvalidRequest
from shared.telemetry.openapi import Answer, Body, Parameter


class DeviceBody(msgspec.Struct, frozen=True):
    """An enrolled App Attest key. Of an imported one, the app is not known before its first use."""

    key_id: str
    environment: str | None
    bundle_id: str | None
    bundle_version: str | None
    counter: int
    created_at: str
    last_used_at: str | None
    revoked_at: str | None
    revoked_reason: str | None
    validation_category: int | None
    risk_metric: int | None
    risk_metric_at: str | None
    receipt_fault: str | None
    source_digest: str | None


class DevicesBody(msgspec.Struct, frozen=True):
    devices: list[DeviceBody]
    next_cursor: str | None


class BlockedBody(msgspec.Struct, frozen=True):
    """Devices that were meant and not blocked yet, and those that are now."""

    dry_run: bool
    matching: int
    blocked: int


class BlockRequest(Chosen, frozen=True, forbid_unknown_fields=True):
    dry_run: bool = True
    reason: Reason | None = None


_CHOSEN = Chosen.__struct_fields__


def _in_utc(given: Chosen) -> Chosen:
    """The criteria with times in UTC, since Python reads offsets that PostgreSQL refuses.

    :raises InvalidRequest: a time is out of range.
    """
    found: list[Any] = [getattr(given, name) for name in _CHOSEN]
    try:
        found = [value.astimezone(UTC) if isinstance(value, datetime) else value for value in found]
        return Chosen(*found)
    except OverflowError as error:
        raise InvalidRequest("first_seen_from or first_seen_to is out of range.") from error


async def list_devices(request: web.Request) -> web.Response:
    await callers.by_key(request)
    query = one_each(request, ("limit", "cursor", "q", *_CHOSEN))
    try:
        chosen = msgspec.convert({name: query[name] for name in _CHOSEN if name in query}, Chosen, strict=False)
    except ValueError as error:
        raise InvalidRequest(
            "bundle_id, validation_category, first_seen_from or another criterion is malformed."
        ) from error
    page = await request.app[DEVICE_ADMIN].page(
        q=query.get("q", ""), cursor=query.get("cursor"), limit=limit(query), chosen=_in_utc(chosen)
    )
    return answer(DevicesBody([body_of(DeviceBody, device) for device in page.rows], page.next_cursor))


async def get_device(request: web.Request) -> web.Response:
    await callers.by_key(request)
    return await _device(request)


async def revoke(request: web.Request) -> web.Response:
    actor = await changing(request)
    raw = await request.read()
    asked = decode(raw, RevokeRequest) if raw.strip() else RevokeRequest()
    await request.app[DEVICE_ADMIN].revoke(request.match_info["key_id"], actor, asked.reason or None)
    return await _device(request)


async def block(request: web.Request) -> web.Response:
    actor = await changing(request)
    asked = decode(await request.read(), BlockRequest)
    found = await request.app[DEVICE_ADMIN].block(_in_utc(asked), actor, asked.reason or None, dry_run=asked.dry_run)
    return answer(BlockedBody(asked.dry_run, found.matching, found.blocked))


async def _device(request: web.Request) -> web.Response:
    return answer(body_of(DeviceBody, await request.app[DEVICE_ADMIN].get(request.match_info["key_id"])))


_TAG = "Devices"
_MOMENT = {"type": "string", "format": "date-time"}
_DEVICE = {200: Answer("The device", DeviceBody), 404: Answer("There is no such device", ErrorBody)}
_ID = Parameter(
    "key_id",
    "Canonical, percent-encoded: it may hold `/ + =`.",
    where="path",
    example="3q2+7wARIjNEVWZ3iJmqu8zd7v8AESIzRFVmd4iZqrs=",
)

OPERATIONS = [
    operation(
        *(_TAG, "GET /device", list_devices, "List or search App Attest devices"),
        {200: Answer("A page, by key id", DevicesBody), **COMMON, **MALFORMED},
        *(LIMIT, CURSOR, Parameter("q", "Start of the key id."), Parameter("bundle_id", "The app.")),
        Parameter("bundle_version", "Its version, which devices report since iOS 27."),
        Parameter(
            "validation_category",
            "How the app was distributed, by Apple's number.",
            schema={"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
        ),
        Parameter("first_seen_from", "Enrolled at this moment or later.", schema=_MOMENT),
        Parameter("first_seen_to", "Enrolled before this moment.", schema=_MOMENT),
        Parameter("source_digest", "Enrolled from the source with this digest."),
    ),
    operation(
        *(_TAG, "POST /device/block", block, "Block all devices of an app, a version, a time or a source"),
        {200: Answer("How many", BlockedBody), **CHANGE, **MALFORMED},
        body=Body(BlockRequest, {"source_digest": "0123456789abcdef0123456789abcdef", "dry_run": True}),
        description="At least one criterion. Only counts unless `dry_run` is false. Blocks at most 10,000, with one "
        "entry in the audit log; gateways learn of them one after another, some hundreds per second. "
        "`POST /user/{key_id}/unblock` admits one again.",
    ),
    operation(_TAG, "GET /device/{key_id}", get_device, "One device", {**_DEVICE, **COMMON}, _ID),
    operation(
        *(_TAG, "POST /device/{key_id}/revoke", revoke, "Revoke a device for good, in all its service types"),
        {**_DEVICE, **CHANGE, **MALFORMED},
        _ID,
        body=Body(RevokeRequest, {"reason": "It was stolen."}, required=False),
        description="Every gateway refuses it within a second, tokens in hand included. This can't be undone.",
    ),
]
