"""Receipts: what Apple signs for a key is taken, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import random
from datetime import UTC, datetime, timedelta

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, strategies as st

from services.auth.appattest.policy import load_roots
from services.auth.receipts.receipt import BadReceipt, Fault, Receipt, apple_root_pem, verify_receipt
from services.local import receipts
from services.local.device import Device
from services.local.pki import Authority, Pki
from tests.services.auth.appattest import vectors
from tests.services.auth.appattest.test_fuzz import change_bytes

TEAM, BUNDLE = "A1B2C3D4E5", "org.example.app"
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
PKI = Pki.create(NOW)
DEVICE = Device(PKI, TEAM, BUNDLE)
SIGNER = receipts.signer(PKI, NOW)


def certificate(device: Device = DEVICE) -> bytes:
    leaf = PKI.certify(device.key.public_key(), key_id=device.key_id, nonce=bytes(32), now=NOW)
    return leaf.public_bytes(Encoding.DER)


FIELDS = receipts.attest_fields(
    app_id=f"{TEAM}.{BUNDLE}",
    certificate=certificate(),
    client_hash=bytes(32),
    token=b"token",
    production=False,
    now=NOW,
)
RENEWED = receipts.renewed_fields(FIELDS, metric=3, now=NOW)


def verify(raw: bytes, *, now: datetime = NOW, app_id: str = f"{TEAM}.{BUNDLE}", pki: Pki = PKI) -> Receipt:
    return verify_receipt(raw, app_id=app_id, key_id=DEVICE.key_id, roots=load_roots(pki.root_pem), now=now)


def fault(raw: bytes, **options: object) -> Fault:
    with pytest.raises(BadReceipt) as caught:
        verify(raw, **options)  # type: ignore[arg-type]
    return caught.value.fault


def test_a_receipt_of_an_attestation_is_taken() -> None:
    assert verify(receipts.sign(FIELDS, PKI, SIGNER)) == Receipt("ATTEST", NOW, NOW + timedelta(days=90), None, None)


def test_a_renewed_receipt_has_a_metric_and_a_time_before_which_not_to_renew_it() -> None:
    day = NOW + timedelta(days=1)
    assert verify(receipts.sign(RENEWED, PKI, SIGNER)) == Receipt("RECEIPT", NOW, NOW + timedelta(days=90), day, 3)


def test_a_receipt_outlives_the_certificate_that_signed_it() -> None:
    raw = receipts.sign(FIELDS, PKI, SIGNER)
    assert verify(raw, now=NOW + timedelta(days=80)).created == NOW


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (Fault.FIELDS, {6: b"OTHER"}),
        (Fault.FIELDS, {6: b"RECEIPT"}),
        (Fault.FIELDS, {17: b"3"}),
        (Fault.FIELDS, {12: b""}),
        (Fault.FIELDS, {12: b"2026-06-01T12:00:00+00:00"}),
        (Fault.FIELDS, {12: "٢026-06-01T12:00:00Z".encode()}),
        (Fault.FIELDS, {12: b"2026-13-01T12:00:00Z"}),
        (Fault.FIELDS, {21: b"tomorrow"}),
        (Fault.FIELDS, {19: b"\xff"}),
        (Fault.APP_ID, {2: b"A1B2C3D4E5.org.example.other"}),
        (Fault.APP_ID, {2: b"OTHERTEAM1.org.example.app"}),
        (Fault.APP_ID, {2: b""}),
        (Fault.KEY, {3: b""}),
        (Fault.KEY, {3: certificate(Device(PKI, TEAM, BUNDLE))}),
        (Fault.KEY, {3: certificate() + b"\0"}),
        (Fault.CREATED, {12: b"2026-06-01T12:06:00Z"}),
        (Fault.CHAIN, {12: b"2026-07-01T12:00:00Z"}),
        (Fault.CHAIN, {12: b"2026-05-01T12:00:00Z"}),
    ],
)
def test_a_wrong_field_is_found_under_a_good_signature(name: Fault, changes: dict[int, bytes]) -> None:
    late = NOW + timedelta(days=60) if name is Fault.CHAIN else NOW
    assert fault(receipts.sign({**FIELDS, **changes}, PKI, SIGNER), now=late) is name


@pytest.mark.parametrize("metric", [b"-1", b"1.5", b" 3", b"1234567890", "٣".encode(), b"3\n"])
def test_a_metric_is_digits_alone(metric: bytes) -> None:
    assert fault(receipts.sign({**RENEWED, 17: metric}, PKI, SIGNER)) is Fault.FIELDS


@pytest.mark.parametrize("missing", [2, 3, 6, 12, 21])
def test_no_needed_field_may_be_missing(missing: int) -> None:
    fields = {number: value for number, value in FIELDS.items() if number != missing}
    assert fault(receipts.sign(fields, PKI, SIGNER)) in (Fault.FIELDS, Fault.APP_ID, Fault.KEY)


def test_a_field_that_occurs_twice_is_refused() -> None:
    good = receipts.sign(RENEWED, PKI, SIGNER)
    risk = bytes.fromhex("3009020111020101040133")
    content = receipts.content_of(good)
    assert content.count(risk) == 1
    body = content[4:] + bytes.fromhex("3009020111020101040130")
    twice = b"\x31\x82" + len(body).to_bytes(2, "big") + body
    assert fault(receipts.sign_content(twice, PKI, SIGNER)) is Fault.FIELDS
    again = content[:2] + len(content[4:]).to_bytes(2, "big") + content[4:]
    assert verify(receipts.sign_content(again, PKI, SIGNER)).risk_metric == 3


def test_the_signature_covers_every_byte_of_the_content() -> None:
    raw = receipts.sign(FIELDS, PKI, SIGNER)
    assert fault(raw.replace(b"ATTEST", b"ATTEsT")) is Fault.SIGNATURE
    assert fault(raw.replace(b"sandbox", b"Sandbox")) is Fault.SIGNATURE


def test_another_root_is_not_trusted() -> None:
    assert fault(receipts.sign(FIELDS, PKI, SIGNER), pki=Pki.create(NOW)) is Fault.CHAIN
    other = Pki.create(NOW)
    assert fault(receipts.sign(FIELDS, other, receipts.signer(other, NOW))) is Fault.CHAIN


def test_a_certificate_of_a_developer_signs_no_receipts() -> None:
    """Below Apple's root there are keys that developers hold."""
    assert fault(receipts.sign(FIELDS, PKI, receipts.signer(PKI, NOW, extensions=()))) is Fault.SIGNER


def test_a_device_signs_no_receipts() -> None:
    leaf = PKI.certify(DEVICE.key.public_key(), key_id=DEVICE.key_id, nonce=bytes(32), now=NOW)
    assert fault(receipts.sign(FIELDS, PKI, Authority(leaf, DEVICE.key))) is Fault.SIGNER


def test_what_is_no_receipt_is_refused() -> None:
    raw = receipts.sign(FIELDS, PKI, SIGNER)
    other = raw.replace(bytes.fromhex("f70d010702"), bytes.fromhex("f70d010703"))
    for bad in (b"", b"receipt", raw[:-1], raw + b"\0", b"\x30\x80\x00\x00", other, bytes(20_000)):
        assert fault(bad) is Fault.ENCODING


@given(st.binary(max_size=300))
def test_bytes_of_any_kind_end_in_a_named_fault(raw: bytes) -> None:
    with pytest.raises(BadReceipt):
        verify(raw)


@given(st.dictionaries(st.sampled_from([2, 3, 6, 12, 17, 19, 21, 2**40, -1]), st.binary(max_size=40)))
def test_fields_of_any_content_end_in_a_named_fault(fields: dict[int, bytes]) -> None:
    signable = {number: value for number, value in fields.items() if number >= 0}
    with pytest.raises(BadReceipt):
        verify(receipts.sign({**FIELDS, **signable, 99: b"x", 3: fields.get(3, b"")}, PKI, SIGNER))


@given(st.binary(max_size=60))
def test_a_signed_content_that_is_no_set_of_fields_ends_in_a_named_fault(content: bytes) -> None:
    with pytest.raises(BadReceipt):
        verify(receipts.sign_content(content, PKI, SIGNER))


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_a_changed_receipt_is_refused_or_says_the_same() -> None:
    """Some bytes are not signed: those of the envelope's own form."""
    chance = random.Random(7)
    raw = receipts.sign(RENEWED, PKI, SIGNER)
    said = verify(raw)
    refused = 0
    for _ in range(600):
        try:
            assert verify(change_bytes(raw, chance)) == said
        except BadReceipt:
            refused += 1
    assert refused > 500


def test_apples_root_is_the_one_that_apple_publishes() -> None:
    (root,) = load_roots(apple_root_pem())
    assert root.subject.rfc4514_string().endswith("CN=Apple Root CA - G3")
    digest = hashlib.sha256(root.public_bytes(Encoding.DER)).hexdigest()
    assert digest == "63343abfb89a6a03ebb57e9b3f5fa7be7c4f5c756f3017b3a8c488c3653e9179"


@pytest.mark.skipif(not vectors.FILES, reason="recorded objects are not at hand")
def test_recorded_receipts_of_apple_are_taken_for_their_own_key_and_app_alone() -> None:
    roots: list[x509.Certificate] = list(load_roots(apple_root_pem()))
    recorded = [each for each in vectors.load() if each["kind"] == "attestation"]
    assert len(recorded) > 5
    for each in recorded:
        raw = cbor2.loads(base64.b64decode(each["attestation_b64"]))["attStmt"]["receipt"]
        key_id = base64.b64decode(each["key_id_b64"])
        told = verify_receipt(raw, app_id=each["app_id"], key_id=key_id, roots=roots, now=datetime.now(UTC))
        assert told.kind == "ATTEST"
        for app_id, key in ((each["app_id"] + "x", key_id), (each["app_id"], bytes(32))):
            with pytest.raises(BadReceipt):
                verify_receipt(raw, app_id=app_id, key_id=key, roots=roots, now=datetime.now(UTC))
