"""The API of devices: /device."""

from __future__ import annotations

import msgspec
from aiohttp import web

from services.auth.admin.access import callers
from services.auth.admin.api.models import RevokeRequest
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
from services.auth.admin.times import rfc3339
from services.auth.devices.operators import DEVICE_ADMIN
from services.auth.devices.operators_storage import DeviceRow
from services.auth.error_body import ErrorBody
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


class DevicesBody(msgspec.Struct, frozen=True):
    devices: list[DeviceBody]
    next_cursor: str | None


async def list_devices(request: web.Request) -> web.Response:
    await callers.by_key(request)
    query = one_each(request, ("limit", "cursor", "q"))
    page = await request.app[DEVICE_ADMIN].page(q=query.get("q", ""), cursor=query.get("cursor"), limit=limit(query))
    return answer(DevicesBody([_body(device) for device in page.rows], page.next_cursor))


async def get_device(request: web.Request) -> web.Response:
    await callers.by_key(request)
    return await _device(request)


async def revoke(request: web.Request) -> web.Response:
    actor = await changing(request)
    raw = await request.read()
    asked = decode(raw, RevokeRequest) if raw.strip() else RevokeRequest()
    await request.app[DEVICE_ADMIN].revoke(request.match_info["key_id"], actor, asked.reason or None)
    return await _device(request)


async def _device(request: web.Request) -> web.Response:
    return answer(_body(await request.app[DEVICE_ADMIN].get(request.match_info["key_id"])))


def _body(device: DeviceRow) -> DeviceBody:
    return DeviceBody(
        device.key_id,
        device.environment,
        device.bundle_id,
        device.bundle_version,
        device.counter,
        rfc3339(device.created_at),
        rfc3339(device.last_used_at) if device.last_used_at else None,
        rfc3339(device.revoked_at) if device.revoked_at else None,
        device.revoked_reason,
    )


_TAG = "Devices"
_NOT_FOUND = {404: Answer("There is no such device", ErrorBody)}
_ID = Parameter(
    "key_id",
    "Canonical, percent-encoded: it may hold `/ + =`.",
    where="path",
    example="3q2+7wARIjNEVWZ3iJmqu8zd7v8AESIzRFVmd4iZqrs=",
)

OPERATIONS = [
    operation(
        _TAG,
        "GET",
        "/device",
        list_devices,
        "List or search App Attest devices",
        {200: Answer("A page, by key id", DevicesBody), **COMMON, **MALFORMED},
        parameters=[LIMIT, CURSOR, Parameter("q", "Start of the key id.")],
    ),
    operation(
        _TAG,
        "GET",
        "/device/{key_id}",
        get_device,
        "One device",
        {200: Answer("The device", DeviceBody), **COMMON, **_NOT_FOUND},
        parameters=[_ID],
    ),
    operation(
        _TAG,
        "POST",
        "/device/{key_id}/revoke",
        revoke,
        "Revoke a device for good, in all its service types",
        {200: Answer("The device", DeviceBody), **CHANGE, **_NOT_FOUND, **MALFORMED},
        parameters=[_ID],
        body=Body(RevokeRequest, {"reason": "It was stolen."}, required=False),
        description="Every gateway refuses it within a second, tokens in hand included. This can't be undone.",
    ),
]
