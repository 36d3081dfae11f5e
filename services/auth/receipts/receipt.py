"""Verification of a receipt: bytes, clock and trust anchors in, a result or a named error out.

A receipt is PKCS#7 SignedData (RFC 5652), in BER with indefinite lengths, over a SET of SEQUENCE {type, version,
value}. Apple documents the types in "Assessing fraud risk" (DeviceCheck), whose steps are followed here: signature,
chain to Apple Root CA - G3, app id, attested key, creation time.

The signing certificate must carry the extension by which Apple marks signers of these receipts. The root alone proves
nothing: below it Apple also certifies keys that its developers hold.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from importlib import resources
from typing import Any, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pyasn1.codec.ber import decoder as ber
from pyasn1.codec.der import decoder as der
from pyasn1.type import namedtype, tag, univ

from services.auth.appattest.attestation import MAX_ATTESTATION_BYTES
from services.auth.appattest.chain import Certificate, check_path, check_signatures
from services.auth.appattest.errors import Rejected

#: No receipt can be larger than the attestation that it comes in; Apple's have 4 KiB.
MAX_RECEIPT_BYTES = MAX_ATTESTATION_BYTES
#: How far the clocks of Apple and this machine may differ.
SKEW = timedelta(minutes=5)
#: The extension of certificates that sign these receipts.
SIGNER_OID = x509.ObjectIdentifier("1.2.840.113635.100.12.15")

_SIGNED_DATA, _DATA = "1.2.840.113549.1.7.2", "1.2.840.113549.1.7.1"
_HASHES: dict[tuple[str, str], hashes.HashAlgorithm] = {
    ("2.16.840.1.101.3.4.2.1", "1.2.840.10045.4.3.2"): hashes.SHA256(),
    ("2.16.840.1.101.3.4.2.2", "1.2.840.10045.4.3.3"): hashes.SHA384(),
    ("2.16.840.1.101.3.4.2.3", "1.2.840.10045.4.3.4"): hashes.SHA512(),
}
_MAX_CERTIFICATES = 4
_APP_ID, _CERTIFICATE, _KIND, _CREATED, _RISK, _NOT_BEFORE, _EXPIRES = 2, 3, 6, 12, 17, 19, 21
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?\d*Z", re.ASCII)
_METRIC = re.compile(rb"[0-9]{1,9}")


class Fault(StrEnum):
    """The step that a receipt failed."""

    ENCODING = "encoding"
    SIGNER = "signer"
    SIGNATURE = "signature"
    CHAIN = "chain"
    FIELDS = "fields"
    APP_ID = "app_id"
    KEY = "key"
    CREATED = "created"


class BadReceipt(Exception):
    """It is not Apple's receipt for this key of this app."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Receipt:
    """A verified receipt. Those of an attestation have neither a metric nor a time before which not to renew them."""

    kind: Literal["ATTEST", "RECEIPT"]
    created: datetime
    expires: datetime
    not_before: datetime | None
    risk_metric: int | None


def apple_root_pem() -> bytes:
    """Apple Root CA - G3, from the package."""
    return resources.files(__package__).joinpath("apple_root_g3.pem").read_bytes()


def verify_receipt(
    raw: bytes, *, app_id: str, key_id: bytes, roots: Sequence[x509.Certificate], now: datetime
) -> Receipt:
    """The receipt of a key. Its signer's certificate must have been valid when it was made, since keys outlive it.

    :param app_id: TEAM.bundle.
    :param key_id: SHA-256 of the attested public key.
    :raises BadReceipt: it is not Apple's receipt for this key of this app.
    """
    signed = _parse(raw)
    signer, issuer = _signers(signed)
    if not isinstance(signer.public_key, ec.EllipticCurvePublicKey):
        raise BadReceipt(Fault.SIGNER)
    try:
        signer.public_key.verify(signed.signature, signed.content, ec.ECDSA(signed.algorithm))
    except InvalidSignature as error:
        raise BadReceipt(Fault.SIGNATURE) from error
    fields = _fields(signed.content)
    receipt = _receipt(fields)
    if receipt.created > now + SKEW:
        raise BadReceipt(Fault.CREATED)
    try:
        check_signatures(signer, issuer, check_path(signer, issuer, roots, receipt.created))
    except Rejected as error:
        raise BadReceipt(Fault.CHAIN) from error
    if fields.get(_APP_ID) != app_id.encode():
        raise BadReceipt(Fault.APP_ID)
    if _key_id(fields) != key_id:
        raise BadReceipt(Fault.KEY)
    return receipt


def _context(number: int) -> tag.Tag:
    return tag.Tag(tag.tagClassContext, tag.tagFormatConstructed, number)


def _tagged(kind: Any, **tags: tag.Tag) -> Any:
    """A type with a tag of its context."""
    return kind.subtype(**tags)


def _sequence(**members: Any) -> Any:
    """A type of SEQUENCE; a member in a list is optional."""
    named = [
        namedtype.OptionalNamedType(name, kind[0]) if isinstance(kind, list) else namedtype.NamedType(name, kind)
        for name, kind in members.items()
    ]
    return univ.Sequence(componentType=namedtype.NamedTypes(*named))


# SignedData as Apple makes it: content inside, certificates, no revocation lists, signers without attributes
_ALGORITHM = _sequence(algorithm=univ.ObjectIdentifier(), parameters=[univ.Any()])
_SIGNER = _sequence(
    version=univ.Integer(),
    id=_sequence(issuer=univ.Any(), serial=univ.Integer()),
    digest=_ALGORITHM,
    algorithm=_ALGORITHM,
    signature=univ.OctetString(),
)
_SIGNED = _sequence(
    version=univ.Integer(),
    digests=univ.SetOf(componentType=_ALGORITHM),
    content=_sequence(type=univ.ObjectIdentifier(), value=_tagged(univ.OctetString(), explicitTag=_context(0))),
    certificates=_tagged(univ.SetOf(componentType=univ.Any()), implicitTag=_context(0)),
    signers=univ.SetOf(componentType=_SIGNER),
)
_CONTENT_INFO = _sequence(type=univ.ObjectIdentifier(), content=_tagged(_SIGNED, explicitTag=_context(0)))
_PAYLOAD = univ.SetOf(componentType=_sequence(type=univ.Integer(), version=univ.Integer(), value=univ.OctetString()))


@dataclass(frozen=True, slots=True)
class _Signed:
    content: bytes
    certificates: list[bytes]
    issuer: bytes
    serial: int
    algorithm: hashes.HashAlgorithm
    signature: bytes


def _decode(decoder: Any, raw: bytes, kind: Any) -> Any:
    try:
        value, rest = decoder.decode(raw, asn1Spec=kind)
    except Exception as error:  # pyasn1 raises whatever malformed bytes lead to
        raise BadReceipt(Fault.ENCODING) from error
    if rest:
        raise BadReceipt(Fault.ENCODING)
    return value


def _parse(raw: bytes) -> _Signed:
    if len(raw) > MAX_RECEIPT_BYTES:
        raise BadReceipt(Fault.ENCODING)
    info = _decode(ber, raw, _CONTENT_INFO)
    signed = info["content"]
    if (str(info["type"]), str(signed["content"]["type"])) != (_SIGNED_DATA, _DATA):
        raise BadReceipt(Fault.ENCODING)
    if len(signed["signers"]) != 1 or len(signed["certificates"]) > _MAX_CERTIFICATES:
        raise BadReceipt(Fault.SIGNER)
    signer = signed["signers"][0]
    algorithm = _HASHES.get((str(signer["digest"]["algorithm"]), str(signer["algorithm"]["algorithm"])))
    if algorithm is None:
        raise BadReceipt(Fault.SIGNATURE)
    return _Signed(
        bytes(signed["content"]["value"]),
        [bytes(certificate) for certificate in signed["certificates"]],
        bytes(signer["id"]["issuer"]),
        int(signer["id"]["serial"]),
        algorithm,
        bytes(signer["signature"]),
    )


def _signers(signed: _Signed) -> tuple[Certificate, Certificate]:
    """The certificate that signed the receipt, and its issuer's."""
    try:
        certificates = [Certificate.parse(each) for each in signed.certificates]
    except Rejected as error:
        raise BadReceipt(Fault.SIGNER) from error
    for signer in certificates:
        if signer.issuer.public_bytes() == signed.issuer and signer.raw.serial_number == signed.serial:
            break
    else:
        raise BadReceipt(Fault.SIGNER)
    if not any(extension.oid == SIGNER_OID for extension in signer.extensions):
        raise BadReceipt(Fault.SIGNER)
    for issuer in certificates:
        if issuer.subject == signer.issuer:
            return signer, issuer
    raise BadReceipt(Fault.CHAIN)


def _fields(content: bytes) -> dict[int, bytes]:
    fields: dict[int, bytes] = {}
    for field in _decode(der, content, _PAYLOAD):
        number = int(field["type"])
        if number in fields:
            raise BadReceipt(Fault.FIELDS)
        fields[number] = bytes(field["value"])
    return fields


def _receipt(fields: dict[int, bytes]) -> Receipt:
    kind, metric = fields.get(_KIND), fields.get(_RISK) or None
    if kind not in (b"ATTEST", b"RECEIPT") or (metric is None) != (kind == b"ATTEST"):
        raise BadReceipt(Fault.FIELDS)
    if metric is not None and not _METRIC.fullmatch(metric):
        raise BadReceipt(Fault.FIELDS)
    return Receipt(
        "ATTEST" if kind == b"ATTEST" else "RECEIPT",
        _time(fields.get(_CREATED, b"")),
        _time(fields.get(_EXPIRES, b"")),
        _time(fields[_NOT_BEFORE]) if fields.get(_NOT_BEFORE) else None,
        None if metric is None else int(metric),
    )


def _time(value: bytes) -> datetime:
    """An instant of RFC 3339, in UTC."""
    try:
        if _TIME.fullmatch(text := value.decode("ascii")):
            return datetime.fromisoformat(text[:-1]).replace(tzinfo=UTC)
    except ValueError:
        pass
    raise BadReceipt(Fault.FIELDS)


def _key_id(fields: dict[int, bytes]) -> bytes:
    try:
        key = Certificate.parse(fields.get(_CERTIFICATE, b"")).public_key
    except Rejected as error:
        raise BadReceipt(Fault.KEY) from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise BadReceipt(Fault.KEY)
    return hashlib.sha256(key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)).digest()
