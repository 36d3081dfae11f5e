"""Receipts in the shape of Apple's, under the root of a test PKI: for local runs and tests.

What they imitate, with the source ("recorded": the receipts in recorded attestations, and a renewed one in
veehaitch/devicecheck-appattest, src/test/resources/ios-14.4.yaml; "Apple": "Assessing fraud risk" of DeviceCheck):

    PKCS#7 SignedData in BER, with indefinite lengths and the       recorded
    content in pieces of 1,000 bytes
    certificates: signer, its CA, the root; one signer by issuer    recorded
    and serial number, without attributes; ECDSA with SHA-256
    the signer's extension 1.2.840.113635.100.12.15                 recorded
    content: SET of SEQUENCE {type, version 1, OCTET STRING}        Apple; recorded
    2 app id, 3 attested certificate, 4 client hash, 5 token,       Apple; recorded
    6 ATTEST or RECEIPT, 12 creation time, 21 expiration time
    7 "sandbox" or "production"                                     recorded
    of a RECEIPT 17 risk metric in digits, 19 not before            Apple; recorded
    expiration after 90 days, not before after one                  recorded
    times in RFC 3339 with milliseconds                             recorded

Where they differ on purpose: the token is the name of the simulated phone, where Apple's is encrypted; the signer is
issued by the CA of devices and lives three days, where Apple's is issued by a CA of its own under Apple Root CA - G3,
lives 13 months, and has further extensions, unread here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from pyasn1.codec.ber import decoder

from services.local.pki import LEAF_BACKDATED, LEAF_LIFETIME, Authority, Extension, Pki, key_usage

LIFETIME, NOT_BEFORE = timedelta(days=90), timedelta(days=1)
SIGNER_EXTENSION: Extension = (
    x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.840.113635.100.12.15"), b"\x05\x00"),
    False,
)
_PIECE = 1000
_SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")
_DATA = bytes.fromhex("06092a864886f70d010701")
_SHA256 = bytes.fromhex("300d06096086480165030402010500")
_ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")

Fields = Mapping[int, bytes]


def signer(pki: Pki, now: datetime, extensions: Iterable[Extension] = (SIGNER_EXTENSION,)) -> Authority:
    """A certificate that signs receipts, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = pki.intermediate.issue(
        "MLPA Test Fraud Receipt Signing",
        key.public_key(),
        not_before=now - LEAF_BACKDATED,
        not_after=now - LEAF_BACKDATED + LEAF_LIFETIME,
        extensions=[
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (key_usage(digital_signature=True), True),
            *extensions,
        ],
    )
    return Authority(certificate, key)


def attest_fields(
    *, app_id: str, certificate: bytes, client_hash: bytes, token: bytes, production: bool, now: datetime
) -> dict[int, bytes]:
    """The content of a receipt in an attestation."""
    return {
        2: app_id.encode(),
        3: certificate,
        4: client_hash,
        5: token,
        6: b"ATTEST",
        7: b"production" if production else b"sandbox",
        12: _time(now),
        21: _time(now + LIFETIME),
    }


def renewed_fields(fields: Fields, *, metric: int, now: datetime) -> dict[int, bytes]:
    """The content of the receipt that replaces one."""
    return {
        17: str(metric).encode(),
        **{number: value for number, value in fields.items() if number != 17},
        6: b"RECEIPT",
        12: _time(now),
        19: _time(now + NOT_BEFORE),
        21: _time(now + LIFETIME),
    }


def sign(fields: Fields, pki: Pki, by: Authority) -> bytes:
    """A receipt of this content."""
    sequences = [_integer(number) + _integer(1) + _tlv(0x04, value) for number, value in fields.items()]
    return sign_content(_tlv(0x31, b"".join(_tlv(0x30, sequence) for sequence in sequences)), pki, by)


def sign_content(content: bytes, pki: Pki, by: Authority) -> bytes:
    """A receipt of any content."""
    pieces = b"".join(_tlv(0x04, content[at : at + _PIECE]) for at in range(0, len(content), _PIECE))
    certificates = [by.certificate, pki.intermediate.certificate, pki.root.certificate]
    serial = by.certificate.serial_number
    assert isinstance(by.key, ec.EllipticCurvePrivateKey)
    info = (
        _tlv(0x02, b"\x01")
        + _tlv(0x30, by.certificate.issuer.public_bytes() + _integer(serial))
        + _SHA256
        + _ECDSA_SHA256
        + _tlv(0x04, by.key.sign(content, ec.ECDSA(hashes.SHA256())))
    )
    signed = (
        _tlv(0x02, b"\x01")
        + _tlv(0x31, _SHA256)
        + _open(0x30, _DATA + _open(0xA0, _open(0x24, pieces)))
        + _open(0xA0, b"".join(each.public_bytes(Encoding.DER) for each in certificates))
        + _tlv(0x31, _tlv(0x30, info))
    )
    return _open(0x30, _SIGNED_DATA + _open(0xA0, _open(0x30, signed)))


def content_of(receipt: bytes) -> bytes:
    """The signed content of a receipt; nothing is verified.

    :raises ValueError: it has none.
    """
    try:
        content, _ = decoder.decode(receipt[receipt.index(_DATA) + len(_DATA) + 2 :])
        return bytes(content)
    except Exception as error:  # pyasn1 raises whatever malformed bytes lead to
        raise ValueError("not a receipt") from error


def fields_of(receipt: bytes) -> dict[int, bytes]:
    """The fields of a receipt; nothing is verified.

    :raises ValueError: it has none.
    """
    try:
        fields, _ = decoder.decode(content_of(receipt))
        return {int(field[0]): bytes(field[2]) for field in fields}
    except Exception as error:  # as above
        raise ValueError("not a receipt") from error


def _time(moment: datetime) -> bytes:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z").encode()


def _integer(value: int) -> bytes:
    return _tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _tlv(kind: int, value: bytes) -> bytes:
    """DER."""
    length = len(value)
    if length < 0x80:
        return bytes([kind, length]) + value
    size = (length.bit_length() + 7) // 8
    return bytes([kind, 0x80 | size]) + length.to_bytes(size, "big") + value


def _open(kind: int, value: bytes) -> bytes:
    """BER of indefinite length."""
    return bytes([kind, 0x80]) + value + b"\x00\x00"
