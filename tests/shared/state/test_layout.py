"""What releases share: neither a key, a field nor a packed value may change its bytes."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from shared.state import layout
from shared.state.packed import (
    Details,
    Excepted,
    LedgerRow,
    Reserved,
    Unwritten,
    parse_outbox,
    period_of,
    sum_field,
    total_name,
)
from tests.support.service_types import service_type

UID = "00112233445566778899aabbccddeeff"
USER = f"{UID}:ai"
DETAILS = Details('r|"1"', "ai", "gpt", "chat", 86_400)
DETAILS_TEXT = '["r|\\"1\\"","ai","gpt","chat",86400]'


def test_the_keys_of_a_user_and_of_a_shard() -> None:
    keys = layout.of_user(USER)
    tag = f"mlpa:{{s{keys.number:02d}}}:"
    assert (keys.leases, keys.outbox, keys.totals, keys.sums, keys.claim, keys.forgotten) == (
        f"{tag}leases",
        f"{tag}outbox",
        f"{tag}totals",
        f"{tag}sums",
        f"{tag}claim",
        f"{tag}forgotten",
    )
    assert (keys.user(USER), keys.users + USER) == (f"{tag}u:{USER}", f"{tag}u:{USER}")
    assert (keys.identity(UID), keys.token("j")) == (f"{tag}i:{UID}", f"{tag}j:j")
    assert (keys.requests_window(USER), keys.tokens_window(USER)) == (f"{tag}w:{USER}", f"{tag}t:{USER}")
    assert keys.tombstone("id") == f"{tag}d:id"
    assert layout.of_identity(UID) is keys
    assert (layout.user_key(USER), layout.identity_key(UID)) == (keys.user(USER), keys.identity(UID))


def test_the_fields_and_expiries() -> None:
    fields = {name: value for name, value in vars(layout).items() if name.isupper() and isinstance(value, str | int)}
    assert fields == {
        "SHARDS": 64,
        "EPOCH": "ep",
        "VERSION": "v",
        "TIER": "tier",
        "EXCEPTION": "exc",
        "DURATION": "dur",
        "PERIOD": "idx",
        "NEWEST": "hi",
        "SPENT": "spent",
        "RESERVED": "res",
        "OPEN": "open",
        "ESTIMATED": "tok",
        "USED_TOKENS": "tps",
        "RESERVATION": "r:",
        "UNWRITTEN": "x:",
        "STANDING": "blk",
        "TOKENS_FROM": "from",
        "GENERATION": "gen",
        "GOOD": "0",
        "KNOWN_USER": "u:",
        "SUM_SPENT": "s|",
        "SUM_RESERVED": "r|",
        "BUILT": "b|",
        "BUILDING": "building",
        "READING": "reading",
        "WINDOW": 60_000,
        "IDLE": 172_800,
        "SETTLED": 600,
        "REAPED": 86_400,
        "REBUILT": 60,
    }
    assert [standing.value for standing in layout.Standing] == ["0", "blocked", "revoked"]


def test_the_packed_values() -> None:
    assert Reserved(5, 1_700_000_000_123, 25, 100, 40, "ai:86400", DETAILS).pack() == (
        f"5|1700000000123|25|100|40|ai:86400|{DETAILS_TEXT}"
    )
    row = LedgerRow("id", USER, 7, 1_700_000_000_123, 10, 20, "success", DETAILS, lowers=True, settled_ms=9)
    entry = f"1|7|9|{USER}|1700000000123|10|20|success|{DETAILS_TEXT}"
    assert (row.start + f"9|{USER}|" + row.end, LedgerRow.parse("id", entry)) == (entry, row)
    assert Unwritten.parse("7|1700000000123") == (7, 1_700_000_000_123)
    outbox = [b"id", entry.encode(), b"other", entry.encode()]
    assert parse_outbox(outbox) == [row, msgspec.structs.replace(row, id="other")]
    excepted = Excepted(9.5, 7, without_rates=True)
    assert [excepted.pack(), Excepted(9.5, 7, without_rates=False).pack()] == ["9500|7|0", "9500|7|1"]
    assert [excepted.holds(9.4), excepted.holds(9.5)] == [True, False]
    assert [total_name(service_type(total_budget_nano=nano)) for nano in (0, 1)] == ["", "ai:86400"]
    assert sum_field(layout.SUM_SPENT, "ai:86400", period_of(1_700_000_000_123, 86_400)) == "s|ai:86400|19675"


def test_the_architecture_page_has_every_field_and_key_by_its_name() -> None:
    text = (Path(__file__).parents[3] / "services" / "README.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+:?)(?:<[^>]*>)?` \| `([A-Z_]+)` \|", text, re.MULTILINE))
    of_totals = ("GOOD", "SUM_SPENT", "SUM_RESERVED", "BUILT", "BUILDING", "READING")
    assert {name: field for field, name in rows.items()} == {
        name: value
        for name, value in vars(layout).items()
        if name.isupper() and isinstance(value, str) and name not in of_totals
    }
    keys = re.findall(r"^\| `[\w:<> ]+` \| `([a-z_]+)` \| [A-Z]+ \|", text, re.MULTILINE)
    assert len(keys) == 12
    assert all(hasattr(layout.SHARD_KEYS[0], name) for name in keys)
