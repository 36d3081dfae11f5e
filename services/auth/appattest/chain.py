"""The chain: pinned root -> intermediate -> leaf, as RFC 5280 section 6.1 validates a path of this one shape.

The checks are explicit rather than ``cryptography.x509.verification``'s: that is made for TLS (it wants names and
extended key usages that App Attest's leaves don't have), finds a path of any length, and gives one reason for all
failures. Only the given roots are trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Self, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import SignatureAlgorithmOID

from services.auth.appattest.errors import Rejected, Step, require

_ALGORITHMS = (
    SignatureAlgorithmOID.ECDSA_WITH_SHA256,
    SignatureAlgorithmOID.ECDSA_WITH_SHA384,
    SignatureAlgorithmOID.ECDSA_WITH_SHA512,
)

# The extensions that are processed here; any other that is critical is refused.
_PROCESSED = (x509.BasicConstraints.oid, x509.KeyUsage.oid)

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate, with all parts that are checked already parsed."""

    raw: x509.Certificate
    subject: x509.Name
    issuer: x509.Name
    not_before: datetime
    not_after: datetime
    algorithm: x509.ObjectIdentifier
    public_key: CertificatePublicKeyTypes
    extensions: x509.Extensions

    @classmethod
    def parse(cls, der: bytes) -> Self:
        try:
            certificate = x509.load_der_x509_certificate(der)
            version = certificate.version
            parsed = cls.of(certificate)
        # cryptography parses each part lazily and raises a dozen exceptions without a common base. All parts
        # are parsed here, so that none of them is raised anywhere else.
        except Exception as error:
            raise Rejected(Step.CERTIFICATE, "not parseable") from error
        require(version is x509.Version.v3, Step.CERTIFICATE, "not version 3")
        # The signature ends the certificate; the octet before it counts the bits of its last octet that don't
        # belong to it. There are none, and a parser that drops the count would take other bytes for these.
        require(der[-len(certificate.signature) - 1] == 0, Step.CERTIFICATE, "a signature that isn't whole bytes")
        return parsed

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Self:
        return cls(
            raw=certificate,
            subject=certificate.subject,
            issuer=certificate.issuer,
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            algorithm=certificate.signature_algorithm_oid,
            public_key=certificate.public_key(),
            extensions=certificate.extensions,
        )

    def extension(self, kind: type[_Extension]) -> _Extension | None:
        for extension in self.extensions:
            if isinstance(extension.value, kind):
                return extension.value
        return None

    def raw_extension(self, oid: x509.ObjectIdentifier) -> bytes | None:
        """The DER value of an extension that X.509 itself doesn't define."""
        for extension in self.extensions:
            if extension.oid == oid and isinstance(extension.value, x509.UnrecognizedExtension):
                return extension.value.value
        return None


def check_path(
    leaf: Certificate, intermediate: Certificate, roots: Sequence[x509.Certificate], now: datetime
) -> list[Certificate]:
    """Check the path, except its signatures, which are expensive.

    :returns: the roots that may be its anchor.
    :raises Rejected: a check failed.
    """
    for certificate in (leaf, intermediate):
        require(certificate.algorithm in _ALGORITHMS, Step.SIGNATURE_ALGORITHM, "not ECDSA over SHA-2")
    require(leaf.issuer == intermediate.subject, Step.ISSUER, "the intermediate isn't the leaf's issuer")
    anchors = [Certificate.of(root) for root in roots if root.subject == intermediate.issuer]
    require(bool(anchors), Step.ISSUER, "no pinned root is the intermediate's issuer")

    anchors = [root for root in anchors if root.not_before <= now <= root.not_after]
    require(bool(anchors), Step.VALIDITY, "the root isn't valid now")
    require(intermediate.not_before <= now <= intermediate.not_after, Step.VALIDITY, "the intermediate isn't valid now")
    require(leaf.not_before <= now <= leaf.not_after, Step.VALIDITY, "the leaf isn't valid now")

    # Any path length of the intermediate allows for the leaf; the root's is checked when it's loaded.
    constraints = intermediate.extension(x509.BasicConstraints)
    require(constraints is not None and constraints.ca, Step.CA_CONSTRAINTS, "the intermediate isn't a CA")
    constraints = leaf.extension(x509.BasicConstraints)
    require(constraints is None or not constraints.ca, Step.CA_CONSTRAINTS, "the leaf is a CA")

    usage = intermediate.extension(x509.KeyUsage)
    require(usage is None or usage.key_cert_sign, Step.KEY_USAGE, "the intermediate may not sign")
    usage = leaf.extension(x509.KeyUsage)
    require(
        usage is None or (usage.digital_signature and not usage.key_cert_sign),
        Step.KEY_USAGE,
        "the leaf may not sign data, or may sign certificates",
    )
    for certificate in (leaf, intermediate):
        for extension in certificate.extensions:
            require(not extension.critical or extension.oid in _PROCESSED, Step.CRITICAL_EXTENSION, "an unknown one")
    return anchors


def check_signatures(leaf: Certificate, intermediate: Certificate, anchors: Sequence[Certificate]) -> None:
    """Check the two signatures of the path; only then can it be trusted.

    :raises Rejected: one is wrong.
    """
    require(_issued(leaf, intermediate), Step.CHAIN, "the intermediate didn't sign the leaf")
    require(any(_issued(intermediate, root) for root in anchors), Step.CHAIN, "no pinned root signed the intermediate")


def _issued(certificate: Certificate, issuer: Certificate) -> bool:
    try:
        certificate.raw.verify_directly_issued_by(issuer.raw)
    except (InvalidSignature, ValueError, TypeError):  # forged; two algorithms in it; a key of another kind
        return False
    return True
