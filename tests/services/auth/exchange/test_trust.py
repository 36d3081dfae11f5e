"""Genuine assertions of devices that a row does not trust, and of keys that nobody used for long."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from services.cli.client import ASSERTION
from shared.stores.postgres import Database, Query
from tests.services.auth.conftest import BUNDLE, Auth, StartAuth
from tests.support.exposition import metric
from tests.support.service_types import toml

_FARM = Query.text(
    """
    insert into devices (key_id, public_key, environment, bundle_id, receipt, risk_metric, risk_metric_at)
    select key_id, public_key, 'development', :bundle_id, '\\x30', 1000, now()
    from unnest(cast(:key_ids as text[]), cast(:public_keys as bytea[])) as farmed (key_id, public_key)
    """
)

_DUE = Query.text("select key_id from devices where receipt_due_at <= now()")


async def started(start_auth: StartAuth, folder: Path, *, settings: dict[str, Any] | None = None, **row: Any) -> Auth:
    """Auth with two service types for devices: ``ai`` with fields of the test's, ``s2s`` without."""
    table = folder / "types.toml"
    kinds = {"credentials": ["app_attest"]}
    table.write_text(toml("ai", **kinds, **row) + toml("s2s", **kinds))
    return await start_auth(service_types=table, exchange_limit_per_source=0, **(settings or {}))


async def outcome(auth: Auth, device: Any, scope: str = "ai") -> tuple[int, str | None]:
    status, body = await auth.exchange_device(device, scope)
    return status, body.get("error")


async def change(auth: Auth, what: str) -> None:
    async with Database.connect(auth.settings.database_url.get_secret_value()) as database:
        await database.execute(Query.text(f"update devices set {what}"))


def distrusted(auth: Auth, reason: str) -> float:
    return metric(auth.registry, "app_attest_distrusted_total", reason=reason)


async def test_an_app_that_was_distributed_otherwise_is_refused(start_auth: StartAuth, tmp_path: Path) -> None:
    auth = await started(start_auth, tmp_path, validation_categories=[2, 4])
    for category, gets_in in [(4, True), (2, True), (3, False), (2**31, False), (None, True)]:
        before = distrusted(auth, "category")
        device = await auth.enrolled(bundle_version=None if category is None else "1", validation_category=category)
        assert await outcome(auth, device) == ((200, None) if gets_in else (403, "access_denied")), category
        assert await outcome(auth, device, "s2s") == (200, None), "the other row asks for nothing"
        assert distrusted(auth, "category") == before + (not gets_in), category


async def test_the_category_of_the_attestation_holds_where_an_assertion_has_none(
    start_auth: StartAuth, tmp_path: Path
) -> None:
    auth = await started(start_auth, tmp_path, validation_categories=[4])
    for category in [3, 2**32 - 1]:
        device = await auth.enrolled(bundle_version="1", validation_category=category)
        device.bundle_version = device.validation_category = None
        assert await outcome(auth, device) == (403, "access_denied"), category


async def test_a_farm_of_a_thousand_keys_is_stopped_by_one_field(start_auth: StartAuth, tmp_path: Path) -> None:
    auth = await started(start_auth, tmp_path, max_risk_metric=5)
    keys = [auth.device() for _ in range(1000)]
    async with Database.connect(auth.settings.database_url.get_secret_value()) as database:
        await database.execute(
            _FARM,
            bundle_id=BUNDLE,
            key_ids=[key.key_id_b64 for key in keys],
            public_keys=[key.public_key_x962 for key in keys],
        )
    for key in keys[::100]:
        assert await outcome(auth, key, "s2s") == (200, None), "without the field the farm works"
        assert await outcome(auth, key) == (403, "access_denied")
    honest = auth.device()
    await auth.enrol(honest)
    assert await outcome(auth, honest) == (200, None)


async def test_a_metric_above_the_limit_is_refused(start_auth: StartAuth, tmp_path: Path) -> None:
    auth = await started(start_auth, tmp_path, max_risk_metric=5)
    device = await auth.enrolled()
    for risk, gets_in in [("5", True), ("6", False), ("2147483647", False), ("null", True), ("0", True)]:
        await change(auth, f"risk_metric = {risk}")
        before = distrusted(auth, "risk")
        assert await outcome(auth, device) == ((200, None) if gets_in else (403, "access_denied")), risk
        assert distrusted(auth, "risk") == before + (not gets_in), risk


async def test_a_device_with_a_forged_receipt_is_above_every_limit(start_auth: StartAuth, tmp_path: Path) -> None:
    auth = await started(start_auth, tmp_path, max_risk_metric=1_000_000)
    device = await auth.enrolled()
    for fault, gets_in in [("forged", False), ("expired", True), ("unknown", True)]:
        before = distrusted(auth, "receipt")
        await change(auth, f"receipt_fault = '{fault}'")
        assert await outcome(auth, device) == ((200, None) if gets_in else (403, "access_denied")), fault
        assert await outcome(auth, device, "s2s") == (200, None), fault
        assert distrusted(auth, "receipt") == before + (not gets_in), fault


async def test_a_key_that_nobody_used_for_long_has_to_be_replaced(start_auth: StartAuth, tmp_path: Path) -> None:
    auth = await started(start_auth, tmp_path, settings={"device_unused_days": 30})
    device = await auth.enrolled()
    assert await outcome(auth, device) == (200, None)
    await change(auth, "last_used_at = now() - interval '29 days', created_at = now() - interval '1 year'")
    assert await outcome(auth, device) == (200, None)
    await change(auth, "last_used_at = now() - interval '31 days'")
    status, body = await auth.exchange_device(device)
    assert (status, body["error"]) == (400, "invalid_request")
    assert "attest again" in body["error_description"]
    assert distrusted(auth, "unused")
    await change(auth, "last_used_at = null")
    assert (await outcome(auth, device))[0] == 400, "enrolled a year ago, and never used"
    await auth.enrol(device)
    assert await outcome(auth, device) == (200, None), "its holder has attested it again"


async def test_a_refused_device_keeps_its_challenge_and_counter(start_auth: StartAuth, tmp_path: Path) -> None:
    auth = await started(start_auth, tmp_path, max_risk_metric=5)
    device = await auth.enrolled()
    await change(auth, "risk_metric = 9")
    subject = await auth.assertion(device)
    assert (await auth.exchange(subject, ASSERTION))[0] == 403
    await change(auth, "risk_metric = 5")
    assert (await auth.exchange(subject, ASSERTION))[0] == 200


async def test_whose_signature_is_wrong_learns_nothing_about_the_device(start_auth: StartAuth, tmp_path: Path) -> None:
    auth = await started(start_auth, tmp_path, settings={"device_unused_days": 1}, max_risk_metric=5)
    device = await auth.enrolled()
    await change(auth, "risk_metric = 9, last_used_at = now() - interval '2 days'")
    thief = auth.device()
    await auth.enrol(thief)
    subject = json.loads(
        base64.urlsafe_b64decode(await auth.assertion(thief, challenge=await auth.challenge(device)) + "==")
    )
    subject["key_id_b64"] = device.key_id_b64
    sent = base64.urlsafe_b64encode(json.dumps(subject).encode()).rstrip(b"=").decode()
    status, body = await auth.exchange(sent, ASSERTION)
    assert (status, body["error"]) == (400, "invalid_request")
    assert "attest again" not in body["error_description"]


async def test_who_attests_again_gets_rid_of_nothing(start_auth: StartAuth, tmp_path: Path) -> None:
    auth = await started(start_auth, tmp_path, max_risk_metric=5)
    for known in ["risk_metric = 9", "receipt_fault = 'forged'"]:
        device = await auth.enrolled()
        await change(auth, f"{known}, receipt_due_at = null")
        assert await auth.enrol(device) == (201, {"status": "success"}), known
        assert await outcome(auth, device) == (403, "access_denied"), known
        async with Database.connect(auth.settings.database_url.get_secret_value()) as database:
            assert [row["key_id"] for row in await database.fetch(_DUE)] == [device.key_id_b64], (
                "its new receipt is due"
            )
