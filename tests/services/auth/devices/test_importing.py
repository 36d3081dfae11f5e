"""Devices of another deployment, taken over."""

from __future__ import annotations

import asyncio
import csv
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.auth.devices.importing import read_rows
from services.auth.devices.storage import ImportedDevice
from services.cli.device import device as command
from services.local.device import Device
from services.local.pki import Pki
from shared.stores.postgres import Database, Query
from tests.services.auth.conftest import BUNDLE, TEAM, StartAuth

_ALL = Query.text("select key_id, counter, bundle_id, environment, revoked_at from devices order by key_id")
_REVOKE = Query.text("update devices set revoked_at = now()")


@pytest.fixture
def auth_device(pki: Pki) -> Device:
    return Device(pki=pki, team_id=TEAM, bundle_id=BUNDLE)


def pem_of(made: Device) -> str:
    return (
        made.key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def row_of(made: Device, counter: Any = 5, **changes: Any) -> dict[str, Any]:
    return {"key_id_b64": made.key_id_b64, "public_key_pem": pem_of(made), "counter": counter, **changes}


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def write_csv(path: Path, rows: list[dict[str, Any]], *, one_line: bool) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["counter", "key_id_b64", "public_key_pem"])
        writer.writeheader()
        for row in rows:
            pem = row["public_key_pem"].replace("\n", "\\n") if one_line else row["public_key_pem"]
            writer.writerow({**row, "public_key_pem": pem})
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, postgres_url: str, tmp_path: Path) -> Any:
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    monkeypatch.chdir(tmp_path)
    return lambda path: CliRunner().invoke(command, ["import", str(path)])


async def devices(postgres_url: str) -> dict[str, Any]:
    async with Database.connect(postgres_url) as database:
        return {row["key_id"]: row for row in await database.fetch(_ALL)}


async def test_an_imported_device_exchanges_and_gets_its_bundle_and_environment(
    start_auth: StartAuth, run: Any, postgres_url: str, tmp_path: Path
) -> None:
    auth = await start_auth()
    made = auth.device()
    result = await asyncio.to_thread(run, write_jsonl(tmp_path / "d.jsonl", [row_of(made)]))
    assert (result.exit_code, result.output) == (0, "1 taken, 0 refused\n")
    made.counter = 4
    assert (await auth.exchange_device(made))[0] == 400, "a counter that is not greater"
    made.counter = 5
    assert (await auth.exchange_device(made))[0] == 200
    row = (await devices(postgres_url))[made.key_id_b64]
    assert (row["counter"], row["bundle_id"], row["environment"]) == (6, made.bundle_id, "development")


@pytest.mark.parametrize("one_line", [False, True])
def test_csv_is_taken_too(run: Any, auth_device: Device, tmp_path: Path, one_line: bool) -> None:
    result = run(write_csv(tmp_path / "d.csv", [row_of(auth_device)], one_line=one_line))
    assert (result.exit_code, result.output) == (0, "1 taken, 0 refused\n")


def test_bad_rows_are_told_by_line_and_good_ones_taken(run: Any, auth_device: Device, tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP384R1()).public_key()
    p384 = other.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    stranger = Device(pki=auth_device.pki, team_id="x", bundle_id="y")
    rows: list[Any] = [
        {"key_id_b64": "x"},
        "junk",
        "[]",
        row_of(auth_device, key_id_b64="AAAA"),
        row_of(auth_device, public_key_pem="junk"),
        row_of(auth_device, public_key_pem=p384),
        row_of(auth_device, public_key_pem=pem_of(stranger)),
        row_of(auth_device, counter="many"),
        row_of(auth_device, counter=-1),
        row_of(auth_device, counter=2**32),
        row_of(auth_device),
    ]
    result = run(write_jsonl(tmp_path / "d.jsonl", rows))
    assert result.exit_code == 1
    assert "1 taken, 10 refused" in result.output
    assert [f"line {number}:" in result.output for number in range(1, 12)] == [True] * 10 + [False]


def test_a_damaged_line_of_csv_is_told_and_the_rest_taken(run: Any, auth_device: Device, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "d.csv", [row_of(auth_device)], one_line=True)
    header, row = path.read_text().splitlines()
    path.write_text("\n".join([header, "1," + "x" * 200_000, "1_0" + row.removeprefix("5"), row]))
    result = run(path)
    assert result.exit_code == 1
    assert "1 taken, 2 refused" in result.output
    assert [f"line {number}:" in result.output for number in (2, 3, 4)] == [True, True, False]


async def test_importing_again_never_lowers_a_counter_nor_lifts_a_revocation(
    run: Any, auth_device: Device, postgres_url: str, tmp_path: Path
) -> None:
    for counter in (7, 3, 7):
        path = write_jsonl(tmp_path / "d.jsonl", [row_of(auth_device, counter), row_of(auth_device, 1)])
        assert (await asyncio.to_thread(run, path)).exit_code == 0
        assert (await devices(postgres_url))[auth_device.key_id_b64]["counter"] == 7
    async with Database.connect(postgres_url) as database:
        await database.execute(_REVOKE)
    path = write_jsonl(tmp_path / "d.jsonl", [row_of(auth_device, 9)])
    assert (await asyncio.to_thread(run, path)).exit_code == 0
    row = (await devices(postgres_url))[auth_device.key_id_b64]
    assert (row["counter"], row["revoked_at"] is not None) == (9, True)


def test_a_file_without_the_columns_is_refused_in_one_line(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("a,b\n1,2\n")
    result = run(path)
    assert result.exit_code == 1
    assert "the header must have" in result.output


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"environment": "development", "bundle_id": BUNDLE}, "environment is not production"),
        ({"environment": "", "bundle_id": BUNDLE}, "environment is not production"),
        ({"environment": "Production", "bundle_id": BUNDLE}, "neither production nor development"),
        ({"environment": 1, "bundle_id": BUNDLE}, "neither production nor development"),
        ({"environment": "production", "bundle_id": ""}, "bundle_id is missing"),
        ({"environment": "production", "bundle_id": "a b"}, "not a bundle id"),
        ({"environment": "production", "bundle_id": ["x"]}, "not a bundle id"),
        ({"environment": "production"}, "not an object of"),
        ({}, "not an object of"),
    ],
    ids=str,
)
def test_production_takes_only_keys_that_say_they_are_of_production(
    auth_device: Device, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    file = write_jsonl(tmp_path / "devices", [row_of(auth_device, **changes)])
    with file.open() as text:
        (refused,) = read_rows(text, production=True)
    assert reason in str(refused)


@pytest.mark.parametrize("production", [True, False])
def test_environment_and_bundle_are_taken_over_where_they_are_told(
    auth_device: Device, tmp_path: Path, production: bool
) -> None:
    rows = [row_of(auth_device, environment="production", bundle_id=BUNDLE)]
    rows += [] if production else [row_of(auth_device), row_of(auth_device, environment="development")]
    with write_jsonl(tmp_path / "devices", rows).open() as text:
        taken = [
            (row.environment, row.bundle_id)
            for row in read_rows(text, production=production)
            if isinstance(row, ImportedDevice)
        ]
    assert taken == [("production", BUNDLE), (None, None), ("development", None)][: len(rows)]


async def test_what_is_exported_can_be_imported_as_it_is(
    start_auth: StartAuth, run: Any, postgres_url: str, tmp_path: Path
) -> None:
    auth = await start_auth()
    made = [auth.device() for _ in range(3)]
    for each in made:
        assert (await auth.enrol(each))[0] == 201
    assert (await auth.exchange_device(made[0]))[0] == 200
    before = await devices(postgres_url)
    exported = await asyncio.to_thread(CliRunner().invoke, command, ["export"])
    assert exported.exit_code == 0
    lines = exported.stdout[exported.stdout.index("key_id_b64") :]  # the service in this process logs to the same place
    nothing = await asyncio.to_thread(CliRunner().invoke, command, ["export", "--since", "2099-01-01"])
    assert nothing.stdout.strip().endswith("key_id_b64,public_key_pem,counter,environment,bundle_id")
    async with Database.connect(postgres_url) as database:
        await database.execute(Query.text("delete from devices"))
    path = tmp_path / "exported.csv"
    path.write_text(lines)
    assert "3 taken, 0 refused" in (await asyncio.to_thread(run, path)).output
    assert await devices(postgres_url) == before
    async with Database.connect(postgres_url) as database:
        await database.execute(_REVOKE)
    exported = await asyncio.to_thread(CliRunner().invoke, command, ["export"])
    assert made[0].key_id_b64 not in exported.stdout, "a revoked device stays here"
