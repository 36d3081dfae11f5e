"""What the console shows about the risk of devices."""

from __future__ import annotations

from urllib.parse import quote

from tests.services.auth.admin.conftest import Person, Rows

KEY_ID = f"A{'B' * 42}="


async def test_the_metric_and_a_forged_receipt_are_shown_in_the_list_and_on_the_page_of_a_device(
    person: Person, rows: Rows
) -> None:
    rows.device(KEY_ID)
    page = f"/admin/devices/{quote(KEY_ID, safe='')}/revoke"
    assert "Risk metric not known" in (await person.get(page)).words
    rows.run(
        "update devices set risk_metric = 77, risk_metric_at = now(), validation_category = 4, receipt_fault = 'forged'"
    )
    listed = (await person.get("/admin/devices")).words
    assert "77 forged receipt" in listed
    shown = (await person.get(page)).words
    assert "Risk metric 77 keys of this device in 30 days" in shown
    assert "Validation category 4" in shown
    assert "receipt: forged" in shown
