"""Verification of Apple App Attest objects: bytes, clock and trust anchors in, a result or a named error out.

The steps are those of Apple's "Validating apps that connect to your server"; ``Step`` names each one, in the order
of the object, with Apple's words. The package does no I/O, reads no clock, and needs only the standard library,
cryptography and cbor2.
"""
