"""``mlpa app-attest check``: one line per object, and an exit code that says whether all are good."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from services.cli.app_attest import app_attest
from services.local.device import Device
from services.local.pki import Pki
from tests.services.auth.appattest import vectors

PKI = Pki.create()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def check(*files: object, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(app_attest, ["check", *map(str, files)], input=stdin)


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def document() -> dict[str, Any]:
    """A device's attestation and assertion as they'd be captured, valid now."""
    device = Device(PKI, "A1B2C3D4E5", "org.example.app", environment="production")
    sign = device.assert_
    attestation = {
        "id": "attestation",
        "kind": "attestation",
        "attestation_b64": b64(device.attest("ab" * 32)),
        "challenge_b64": b64(b"ab" * 32),
        "key_id_b64": device.key_id_b64,
    }
    assertion = {
        "id": "assertion",
        "kind": "assertion",
        "assertion_b64": b64(sign(b"{}")),
        "client_data_b64": b64(b"{}"),
        "public_key_x962_b64": b64(device.public_key_x962),
    }
    return {
        "source": "a test",
        "defaults": {"root_pem": PKI.root_pem.decode(), "app_id": "A1B2C3D4E5.org.example.app"},
        "vectors": [attestation, assertion],
    }


def test_genuine_objects_are_accepted(document: dict[str, Any]) -> None:
    result = check("-", stdin=json.dumps(document).encode())
    assert lines(result) == [
        {"id": "attestation", "verdict": "accept", "step": None},
        {"id": "assertion", "verdict": "accept", "step": None},
    ]
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("place", "changes", "step"),
    [
        (0, {"valid_at": "2001-01-01T00:00:00Z"}, "validity"),
        (0, {"environment": "development"}, "aaguid"),
        (0, {"app_id": "A1B2C3D4E5.org.example.other"}, "rp_id"),
        (0, {"root_pem": None}, "issuer"),  # Apple's
        (0, {"client_data_hash_b64": b64(bytes(32))}, "nonce"),
        (0, {"attestation_b64": "not base64"}, "base64"),
        (0, {"attestation_b64": b64(bytes(20_000))}, "size"),
        (0, {"key_id_b64": "short"}, "base64"),
        (1, {"last_counter": 1}, "counter"),
        (1, {"assertion_b64": ""}, "cbor"),
    ],
)
def test_a_rejected_object_is_told_with_its_step(
    document: dict[str, Any], place: int, changes: dict[str, Any], step: str
) -> None:
    document["vectors"][place].update(changes)
    result = check("-", stdin=json.dumps(document).encode())
    assert lines(result)[place]["verdict"] == "reject"
    assert lines(result)[place]["step"] == step
    assert lines(result)[1 - place]["verdict"] == "accept"
    assert result.exit_code == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b'{"vectors": {}}',
        b'{"vectors": [1]}',
        b'{"vectors": [{}]}',
        b'{"vectors": [{"id": "a", "kind": "receipt", "app_id": "a.b"}]}',
        b'{"vectors": [{"id": "a", "kind": "assertion", "app_id": "no team"}]}',
        b'{"vectors": [{"id": "a", "kind": "assertion", "app_id": "a.b"}]}',
        b'{"vectors": [{"id": "a", "kind": "assertion", "app_id": "a.b", "root_pem": "none"}]}',
        b'{"vectors": [{"id": "a", "kind": "attestation", "app_id": "a.b", "valid_at": "2026-01-01T00:00:00"}]}',
        b'{"vectors": [{"id": "a", "kind": "attestation", "app_id": "a.b", "valid_at": "tomorrow"}]}',
        b'{"vectors": [{"id": "\\ud800", "kind": "attestation", "app_id": "a.b"}]}',
        b'{"vectors": [' + b"[" * 50_000,
        b'{"vectors": [{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}]}",
    ],
)
def test_a_file_of_another_kind_is_one_line_of_error(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "captured.json"
    file.write_bytes(content)
    result = check(file)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"{file}: ")
    assert result.stderr.count("\n") == 1


def test_an_unreadable_file_does_not_hide_the_others(document: dict[str, Any], tmp_path: Path) -> None:
    good = tmp_path / "good.json"
    good.write_text(json.dumps(document))
    result = check(tmp_path / "missing.json", tmp_path, good)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 2
    assert [line["verdict"] for line in lines(result)] == ["accept", "accept"]


@pytest.mark.skipif(not vectors.FILES, reason="no vectors: set APP_ATTEST_VECTORS")
def test_real_objects_get_their_verdict() -> None:
    result = check(*vectors.FILES)
    expected = {vector["id"]: vector["expected"] for vector in vectors.load()}
    assert {
        line["id"]: line["verdict"] + (f":{line['step']}" if line["step"] else "") for line in lines(result)
    } == expected
    assert result.exit_code == 1
