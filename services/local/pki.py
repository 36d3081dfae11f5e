"""A certificate authority in the shape of Apple's App Attest: for local runs and tests, never for production.

Root (P-384) -> intermediate (P-384, path length 0) -> leaf (P-256, short-lived, with any extension).

It imitates, as in the certificates of recorded attestations and in Apple's App Attestation Root CA:

    curves, and signatures over SHA-384 (the CAs) and SHA-256 (the leaf)
    the CAs' basic constraints and key usage, critical; the intermediate's path length 0; ten years
    the leaf's basic constraints and key usage (signature, commitment, key and data encipherment), critical
    the leaf's common name, the key id in hexadecimal; three days from the day before, as most (others up to 340)
    the nonce in 1.2.840.113635.100.8.2: SEQUENCE { [1] EXPLICIT OCTET STRING }

Where it differs on purpose: names say that this is not Apple and lack state and unit; the CAs lack key identifiers; the
leaf has a longer serial number and lacks further extensions of Apple (100.8.5, 100.8.7; since iOS 27 100.8.6 and an
extended key usage), unread here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes, CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID

# An extension and whether it's critical.
Extension = tuple[x509.ExtensionType, bool]
Hash = hashes.SHA224 | hashes.SHA256 | hashes.SHA384 | hashes.SHA512

CA_LIFETIME = timedelta(days=3650)
LEAF_LIFETIME = timedelta(days=3)  # in all
# Clocks of a device and a server differ; Apple's leaves begin a day before they're made.
LEAF_BACKDATED = timedelta(days=1)

NONCE_OID = x509.ObjectIdentifier("1.2.840.113635.100.8.2")


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate that others are issued under, and its key."""

    certificate: x509.Certificate
    key: CertificateIssuerPrivateKeyTypes

    def issue(
        self,
        subject: str,
        public_key: CertificatePublicKeyTypes,
        *,
        not_before: datetime,
        not_after: datetime,
        extensions: Sequence[Extension] = (),
        algorithm: Hash | None = None,
    ) -> x509.Certificate:
        """A certificate for ``public_key``, signed with ECDSA over SHA-256 unless ``algorithm`` says otherwise."""
        return _certificate(
            name(subject),
            public_key,
            issuer=self.certificate.subject,
            key=self.key,
            period=(not_before, not_after),
            extensions=extensions,
            algorithm=algorithm or hashes.SHA256(),
        )


@dataclass(frozen=True, slots=True)
class Pki:
    """A root and an intermediate that certify devices."""

    root: Authority
    intermediate: Authority

    @classmethod
    def create(cls, now: datetime | None = None) -> Self:
        not_before = (now or datetime.now(UTC)) - timedelta(days=1)
        period = (not_before, not_before + CA_LIFETIME)
        root = create_root("MLPA Test App Attestation Root CA", period=period)
        key = ec.generate_private_key(ec.SECP384R1())
        certificate = root.issue(
            "MLPA Test App Attestation CA 1",
            key.public_key(),
            not_before=period[0],
            not_after=period[1],
            extensions=ca_extensions(path_length=0),
            algorithm=hashes.SHA384(),
        )
        return cls(root=root, intermediate=Authority(certificate, key))

    @property
    def root_pem(self) -> bytes:
        """The content of the file that APP_ATTEST_ROOT_CA names."""
        return self.root.certificate.public_bytes(serialization.Encoding.PEM)

    def certify(
        self, public_key: ec.EllipticCurvePublicKey, *, key_id: bytes, nonce: bytes, now: datetime
    ) -> x509.Certificate:
        """The leaf that certifies a device's key and the nonce of its attestation."""
        return self.intermediate.issue(
            key_id.hex(),
            public_key,
            not_before=now - LEAF_BACKDATED,
            not_after=now - LEAF_BACKDATED + LEAF_LIFETIME,
            extensions=[*leaf_extensions(), nonce_extension(nonce)],
        )

    def to_members(self) -> dict[str, dict[str, str]]:
        """Certificates and private keys as PEM, for JSON."""
        return {"root": _authority_to_pem(self.root), "intermediate": _authority_to_pem(self.intermediate)}

    @classmethod
    def from_members(cls, members: dict[str, dict[str, str]]) -> Self:
        return cls(root=_authority_from_pem(members["root"]), intermediate=_authority_from_pem(members["intermediate"]))

    def to_json(self) -> str:
        return json.dumps(self.to_members(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls.from_members(json.loads(text))


def create_root(
    subject: str, *, period: tuple[datetime, datetime], extensions: Sequence[Extension] | None = None
) -> Authority:
    """A self-signed P-384 authority."""
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = _certificate(
        name(subject),
        key.public_key(),
        issuer=name(subject),
        key=key,
        period=period,
        extensions=ca_extensions(path_length=None) if extensions is None else extensions,
        algorithm=hashes.SHA384(),
    )
    return Authority(certificate, key)


def ca_extensions(*, path_length: int | None, ca: bool = True) -> list[Extension]:
    return [
        (x509.BasicConstraints(ca=ca, path_length=path_length), True),
        (key_usage(key_cert_sign=True, crl_sign=True), True),
    ]


def leaf_extensions() -> list[Extension]:
    """The standard extensions of Apple's leaves."""
    return [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (
            key_usage(digital_signature=True, content_commitment=True, key_encipherment=True, data_encipherment=True),
            True,
        ),
    ]


def nonce_extension(nonce: bytes) -> Extension:
    """SEQUENCE { [1] EXPLICIT OCTET STRING nonce }, for a nonce of 32 bytes."""
    return x509.UnrecognizedExtension(NONCE_OID, bytes.fromhex("3024a1220420") + nonce), False


def key_usage(
    *,
    digital_signature: bool = False,
    content_commitment: bool = False,
    key_encipherment: bool = False,
    data_encipherment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=content_commitment,
        key_encipherment=key_encipherment,
        data_encipherment=data_encipherment,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "MLPA test, not Apple"),
        ]
    )


def _certificate(
    subject: x509.Name,
    public_key: CertificatePublicKeyTypes,
    *,
    issuer: x509.Name,
    key: CertificateIssuerPrivateKeyTypes,
    period: tuple[datetime, datetime],
    extensions: Sequence[Extension],
    algorithm: Hash,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(period[0])
        .not_valid_after(period[1])
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(key, algorithm)


def _authority_to_pem(authority: Authority) -> dict[str, str]:
    return {
        "certificate": authority.certificate.public_bytes(serialization.Encoding.PEM).decode(),
        "key": key_to_pem(authority.key),
    }


def _authority_from_pem(members: dict[str, str]) -> Authority:
    certificate = x509.load_pem_x509_certificate(members["certificate"].encode())
    return Authority(certificate, load_key(members["key"]))


def key_to_pem(key: CertificateIssuerPrivateKeyTypes) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def load_key(pem: str) -> ec.EllipticCurvePrivateKey:
    """A private key from PEM.

    :raises TypeError: it isn't on an elliptic curve, as all of App Attest's are.
    """
    key = serialization.load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("not an elliptic curve key")
    return key
