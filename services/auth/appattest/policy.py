"""The apps, the environment and the trust anchors that a deployment accepts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from services.auth.appattest.errors import Step, require

Environment = Literal["production", "development"]

AAGUIDS: dict[Environment, bytes] = {"production": b"appattest" + bytes(7), "development": b"appattestdevelop"}


@dataclass(frozen=True, slots=True)
class Policy:
    """The fixed part of every verification.

    Each root is trusted for its name and key (RFC 5280 section 6.1.1 (d)). Whether it may certify a CA is checked
    once, here; whether it is within its period, at each verification.

    :raises ValueError: it could never accept an attestation.
    """

    team_id: str
    bundle_ids: frozenset[str]
    environment: Environment
    roots: tuple[x509.Certificate, ...]

    def __post_init__(self) -> None:
        if self.environment not in AAGUIDS:
            raise ValueError("the environment is production or development")
        if not self.roots:
            raise ValueError("at least one root certificate is needed")
        for root in self.roots:
            _check_root(root)

    @property
    def aaguid(self) -> bytes:
        return AAGUIDS[self.environment]

    def rp_id_hash(self, bundle_id: str) -> bytes:
        """SHA-256 of the App ID (TEAM.bundle).

        :raises Rejected: the app isn't served here.
        """
        require(bundle_id in self.bundle_ids, Step.BUNDLE_ID, "an app that isn't on the list")
        return hashlib.sha256(f"{self.team_id}.{bundle_id}".encode()).digest()


def apple_root_pem() -> bytes:
    """Apple's App Attestation Root CA, from the package (read at start, never while verifying)."""
    return resources.files(__package__).joinpath("apple_root.pem").read_bytes()


def load_roots(pem: bytes) -> tuple[x509.Certificate, ...]:
    """The trust anchors of a PEM file.

    :raises ValueError: it holds none, or one that can't be an anchor.
    """
    roots = tuple(x509.load_pem_x509_certificates(pem))
    for root in roots:
        _check_root(root)
    return roots


def _check_root(root: x509.Certificate) -> None:
    has_elliptic_key = isinstance(root.public_key(), ec.EllipticCurvePublicKey)
    if not has_elliptic_key:
        raise ValueError("a root certificate needs an elliptic curve key")
    for extension in root.extensions:
        match extension.value:
            case x509.BasicConstraints(ca=False) | x509.BasicConstraints(path_length=0):
                raise ValueError("a root certificate must allow a CA below it")
            case x509.KeyUsage(key_cert_sign=False):
                raise ValueError("a root certificate must be allowed to sign certificates")
