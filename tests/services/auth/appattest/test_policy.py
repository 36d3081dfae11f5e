"""Policies and trust anchors: one that could never verify anything is refused when it's made."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from services.auth.appattest.policy import apple_root_pem, load_roots
from services.local.pki import ca_extensions, create_root, key_usage
from tests.services.auth.appattest.forge import DAY, NOW, PKI, intermediate, policy

PERIOD = (NOW - DAY, NOW + DAY)


def test_the_packaged_root_is_apples() -> None:
    """The fingerprint that Apple publishes for the App Attestation Root CA."""
    (root,) = load_roots(apple_root_pem())
    assert root.fingerprint(hashes.SHA256()).hex(":").upper() == (
        "1C:B9:82:3B:A2:8B:A6:AD:2D:33:A0:06:94:1D:E2:AE:4F:51:3E:F1:D4:E8:31:B9:F7:E0:FA:7B:62:42:C9:32"
    )
    assert hashlib.sha256(root.public_bytes(Encoding.DER)).digest() == root.fingerprint(hashes.SHA256())


def test_a_file_may_hold_several_roots() -> None:
    roots = load_roots(apple_root_pem() + PKI.root_pem)
    assert roots[1] == PKI.root.certificate
    assert len(roots) == 2


@pytest.mark.parametrize("pem", [b"", b"no certificate", PKI.root_pem[:-40], PKI.root_pem.replace(b"M", b"N")])
def test_a_file_without_a_certificate_is_refused(pem: bytes) -> None:
    with pytest.raises(ValueError):
        load_roots(pem)


RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
NOT_ANCHORS = {
    "a root with no path below it": create_root("r", period=PERIOD, extensions=ca_extensions(path_length=0)),
    "no CA": create_root("r", period=PERIOD, extensions=[(x509.BasicConstraints(False, None), True)]),
    "no right to sign": create_root("r", period=PERIOD, extensions=[(key_usage(crl_sign=True), True)]),
    "an RSA key": intermediate(key=RSA, extensions=ca_extensions(path_length=None)),
}


@pytest.mark.parametrize("name", NOT_ANCHORS)
def test_what_cannot_be_an_anchor_is_refused(name: str) -> None:
    certificate = NOT_ANCHORS[name].certificate
    with pytest.raises(ValueError, match="root certificate"):
        load_roots(certificate.public_bytes(Encoding.PEM))
    with pytest.raises(ValueError, match="root certificate"):
        policy(roots=(certificate,))


@pytest.mark.parametrize("changes", [{"environment": "staging"}, {"environment": ""}, {"roots": ()}])
def test_a_policy_that_could_accept_nothing_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        policy(**changes)
