"""Verification of Apple App Attest objects: bytes, clock and trust anchors in, a result or a named error out.

The steps are those of Apple's "Validating apps that connect to your server"; ``Step`` names each one, in the order
of the object, with Apple's words. The package does no I/O, reads no clock, and needs only the standard library,
cryptography and cbor2.
"""

from __future__ import annotations

from services.auth.appattest.assertion import MAX_ASSERTION_BYTES, Assertion, verify_assertion
from services.auth.appattest.attestation import MAX_ATTESTATION_BYTES, Attestation, verify_attestation
from services.auth.appattest.encoding import (
    MAX_CLIENT_DATA_BYTES,
    canonical_key_id,
    decode_base64,
    decode_key_id,
    parse_client_data,
)
from services.auth.appattest.errors import AppAttestError, Malformed, Rejected, Step
from services.auth.appattest.policy import Environment, Policy, apple_root_pem, load_roots

__all__ = [
    "MAX_ASSERTION_BYTES",
    "MAX_ATTESTATION_BYTES",
    "MAX_CLIENT_DATA_BYTES",
    "AppAttestError",
    "Assertion",
    "Attestation",
    "Environment",
    "Malformed",
    "Policy",
    "Rejected",
    "Step",
    "apple_root_pem",
    "canonical_key_id",
    "decode_base64",
    "decode_key_id",
    "load_roots",
    "parse_client_data",
    "verify_assertion",
    "verify_attestation",
]
