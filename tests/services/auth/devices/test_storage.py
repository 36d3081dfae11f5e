"""Values that a device can make PostgreSQL store."""

from __future__ import annotations

import pytest

from services.auth.appattest.assertion import Assertion
from services.auth.appattest.auth_data import Launch
from services.auth.devices import storage
from shared.stores.postgres import Database, Query

_ENROL = Query.text("insert into devices (key_id, public_key, counter) values ('key', '\\x04', 0)")
_CATEGORY = Query.text("select counter, validation_category from devices")


@pytest.mark.parametrize(("sent", "stored"), [(4, 4), (2**31 - 1, 2**31 - 1), (2**31, 2**31 - 1), (None, None)])
async def test_any_category_that_fits_into_four_bytes_can_be_told(
    postgres_url: str, sent: int | None, stored: int | None
) -> None:
    async with Database.connect(postgres_url) as database:
        await database.execute(_ENROL)
        assertion = Assertion(2**32 - 1, "org.example", Launch("1", sent))
        assert await storage.advance_counter(database, "key", assertion, "development")
        assert not await storage.advance_counter(database, "key", assertion, "development")
        (row,) = await database.fetch(_CATEGORY)
        assert (row["counter"], row["validation_category"]) == (2**32 - 1, stored)
