"""``mlpa device receipts`` against the stand-in for Apple."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from services.cli.supervisor import RunningSystem
from services.local import apple
from services.local.apple import StandIn
from services.local.device import Device
from services.local.faults import Fault
from services.local.pki import Pki
from shared.stores.postgres import Database, Query
from tests.services.cli.test_shipped import mlpa

TEAM, BUNDLE = "DEVELOPMNT", "org.mozilla.ios.Fennec"
_INSERT = Query.text(
    "insert into devices (key_id, public_key, bundle_id, receipt) values (:key_id, '\\x04', :bundle_id, :receipt)"
)
_METRICS = Query.text("select risk_metric from devices")


@dataclass
class System:
    """The data folder of a local system, and its stand-in for Apple."""

    folder: Path
    stand_in: StandIn
    environment: dict[str, str] = field(default_factory=dict)

    async def receipts(self, *options: str, **environment: str) -> tuple[int | None, str]:
        given = {**self.environment, **environment}
        RunningSystem("", "", "", "", "", self.folder, "", given).save()
        return await mlpa("device", "--data", str(self.folder), "receipts", *options)


@pytest.fixture
async def system(database: Database, postgres_url: str, tmp_path: Path) -> AsyncIterator[System]:
    pki = Pki.create()
    (tmp_path / "root.pem").write_bytes(pki.root_pem)
    stand_in = StandIn(pki, team=TEAM)
    (tmp_path / apple.KEY_FILE).write_text(stand_in.key_pem)
    for _ in range(3):
        device = Device(pki, TEAM, BUNDLE, phone="one")
        attested = device.attest("5a" * 32)
        receipt = attested[attested.index(bytes.fromhex("308006092a864886f70d010702")) :].split(b"hauthData")[0]
        await database.execute(
            _INSERT, key_id=base64.b64encode(device.key_id).decode(), bundle_id=BUNDLE, receipt=receipt
        )
    async with TestServer(stand_in.app(), handler_cancellation=True) as server:
        yield System(
            tmp_path,
            stand_in,
            {
                "DATABASE_URL": postgres_url,
                "APP_DEVELOPMENT_TEAM": TEAM,
                "APPLE_RECEIPT_KEY": str(tmp_path / apple.KEY_FILE),
                "APPLE_RECEIPT_KEY_ID": apple.KEY_ID,
                "APPLE_RECEIPT_BASE_URL": str(server.make_url("")),
                "APPLE_RECEIPT_ROOT_CA": str(tmp_path / "root.pem"),
            },
        )


async def test_the_receipts_of_a_local_system_are_renewed(system: System, database: Database) -> None:
    assert await system.receipts("--limit", "1") == (0, "1 renewed\n")
    assert await system.receipts() == (0, "2 renewed\n")
    assert await system.receipts() == (0, "nothing is due\n")
    assert {row["risk_metric"] for row in await database.fetch(_METRICS)} == {1, 2, 3}


async def test_what_stops_it_is_told_in_one_line_with_what_was_done(system: System) -> None:
    system.stand_in.faults.set(Fault("renew", "respond", status=429))
    code, said = await system.receipts("--rate", "5")
    assert (code, said.splitlines()[-1]) == (1, "Error: Apple asks to wait")


async def test_without_its_database_it_says_so_and_the_next_run_does_all(system: System) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:9/none"
    code, said = await system.receipts(DATABASE_URL=nowhere)
    assert code == 1
    assert said.splitlines()[-1] == "Error: PostgreSQL: Connection refused; what was renewed is kept"
    assert "nothing is due" not in said
    assert await system.receipts() == (0, "3 renewed\n")


async def test_a_file_that_cannot_be_used_is_named(system: System) -> None:
    (system.folder / "bad.p8").write_text("no key")
    for changed, told in (
        ({"APPLE_RECEIPT_KEY": str(system.folder / "bad.p8")}, f"{system.folder}/bad.p8: not a private key in PEM"),
        ({"APPLE_RECEIPT_KEY": "/nowhere"}, "/nowhere: No such file or directory"),
        ({"APPLE_RECEIPT_KEY_ID": ""}, "APPLE_RECEIPT_KEY, APPLE_RECEIPT_KEY_ID and APP_DEVELOPMENT_TEAM are needed"),
        ({"APPLE_RECEIPT_BASE_URL": "http://apple.example"}, "APPLE_RECEIPT_BASE_URL must be https"),
    ):
        code, said = await system.receipts(**changed)
        assert code == 2
        assert told in said
        assert len(said.splitlines()) == 1
