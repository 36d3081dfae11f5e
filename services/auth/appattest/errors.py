"""The errors of an App Attest object, each with the step that found it.

AppAttestError
├── Malformed   wrongly encoded, or too large (HTTP 400)
└── Rejected    well-formed, but a step of the verification failed (HTTP 403)

No other exception leaves this package, whatever the bytes.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class Step(StrEnum):
    """Every step of the verification. A member's docstring is Apple's step, or the reason for ours."""

    # Malformed
    BASE64 = "base64", "RFC 4648: one alphabet, padding right or absent, no white space, no stray bits."
    JSON = "json", "RFC 8259: one UTF-8 object, no member twice, bounded in size and depth."
    SIZE = "size", "An attestation has at most 16 KiB, an assertion at most 6 KiB."
    CBOR = "cbor", "RFC 8949: one item, definite and shortest lengths, no tags, floats or repeated keys."

    # The object
    STRUCTURE = "structure", "Exactly the members that Apple's object has, each of its type."
    FMT = "fmt", "The attestation's fmt is apple-appattest."
    X5C = (
        "x5c",
        "Apple 1: Verify that the x5c array contains the intermediate and leaf certificates for App Attest, "
        "starting from the credential certificate.",
    )

    # The authenticator data
    AUTH_DATA = "auth_data", "The authenticator data is as long as its parts."
    BUNDLE_ID = "bundle_id", "The app is one of those that this deployment serves."
    RP_ID = (
        "rp_id",
        "Apple 6 (assertion: 4): Compute the SHA256 hash of your app's App ID, and verify that it's the same "
        "as the authenticator data's RP ID hash.",
    )
    FLAGS = (
        "flags",
        "Attested credential data (0x40), with or without extension data (0x80); an assertion, for which Apple "
        "specifies nothing, may lack the first. No other flag.",
    )
    COUNTER = (
        "counter",
        "Apple 7: Verify that the authenticator data's counter field equals 0. (Assertion, 5: Verify that the "
        "counter is greater than the value from the previous assertion, or greater than 0 on the first one.)",
    )
    AAGUID = (
        "aaguid",
        "Apple 8: Verify that the authenticator data's aaguid field is either appattestdevelop if operating "
        "in the development environment, or appattest followed by seven 0x00 bytes in production.",
    )
    CREDENTIAL_ID = (
        "credential_id",
        "Apple 9: Verify that the authenticator data's credentialId field is the same as the key identifier.",
    )
    COSE_KEY = "cose_key", "RFC 9053: the credential's public key is an ES256 key on P-256, and nothing more."
    EXTENSIONS = (
        "extensions",
        "iOS 27: nothing follows, or one map of at most 16 extensions: apple_bundle_version_01 and "
        "apple_validation_category_01 in their form, others of at most 256 bytes each.",
    )

    # The certificates
    CERTIFICATE = "certificate", "Each certificate is one DER encoded X.509 certificate, version 3."
    SIGNATURE_ALGORITHM = "signature_algorithm", "Certificates are signed with ECDSA over SHA-2."
    ISSUER = "issuer", "RFC 5280 6.1.3 (a)(4): leaf names intermediate, which names the pinned root, as issuer."
    VALIDITY = (
        "validity",
        "Apple 1: Verify the validity of the certificates using Apple's App Attest root certificate. "
        "RFC 5280 6.1.3 (a)(2): each one's period includes the time of the check.",
    )
    CA_CONSTRAINTS = "ca_constraints", "RFC 5280 6.1.4 (k): the intermediate is a CA, the leaf isn't."
    KEY_USAGE = "key_usage", "RFC 5280 6.1.4 (n): the intermediate may sign certificates, the leaf data only."
    CRITICAL_EXTENSION = "critical_extension", "RFC 5280 6.1.4 (o): no critical extension is left unprocessed."
    CHAIN = (
        "chain",
        "Apple 1: Verify the validity of the certificates using Apple's App Attest root certificate. "
        "RFC 5280 6.1.3 (a)(1): root signed intermediate, intermediate signed leaf.",
    )

    # What the leaf certifies
    NONCE = (
        "nonce",
        "Apple 2 to 4: nonce = SHA256(authData || clientDataHash). Obtain the value of the credCert extension "
        "with OID 1.2.840.113635.100.8.2, and verify that the octet string that it contains equals nonce.",
    )
    LEAF_KEY = "leaf_key", "The certified key is an elliptic curve key on P-256."
    KEY_ID = (
        "key_id",
        "Apple 5: Create the SHA256 hash of the public key in credCert with X9.62 uncompressed point format, "
        "and verify that it matches the key identifier from your app.",
    )
    PUBLIC_KEY = "public_key", "The key in the authenticator data is the certified one."

    # The assertion
    STORED_KEY = "stored_key", "The key on record is a point on P-256."
    SIGNATURE = (
        "signature",
        "Apple's assertion, 1 to 3: nonce = SHA256(authenticatorData || SHA256(clientData)). Use the public "
        "key that you store from the attestation object to verify that the signature is valid for nonce.",
    )

    def __new__(cls, name: str, text: str) -> Self:
        member = str.__new__(cls, name)
        member._value_ = name
        member.__doc__ = text
        return member


class AppAttestError(Exception):
    """An object that isn't accepted. ``str()`` of the error is for logs and holds nothing of the object."""

    def __init__(self, step: Step, reason: str) -> None:
        super().__init__(f"{step}: {reason}")
        self.step = step


class Malformed(AppAttestError):
    """The bytes are not an App Attest object: HTTP 400."""


class Rejected(AppAttestError):
    """The object is well-formed but not trustworthy: HTTP 403."""


def require(condition: bool, step: Step, reason: str) -> None:
    """Check a condition of a step.

    :raises Rejected: at ``step``, with ``reason``: the condition does not hold.
    """
    if not condition:
        raise Rejected(step, reason)
