"""Attestations: those that are accepted, and each way in which each step can be broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, strategies as st

from services.auth.appattest.auth_data import Launch
from services.auth.appattest.errors import AppAttestError, Malformed, Rejected, Step
from services.local import device
from services.local.pki import NONCE_OID, Authority, ca_extensions, create_root, key_usage, leaf_extensions
from tests.services.auth.appattest.forge import (
    BUNDLE,
    DAY,
    KEY,
    NOW,
    OTHER_KEY,
    PKI,
    TEAM,
    AttestationForge,
    cose_members,
    intermediate,
    key_id,
    policy,
    replaced,
)

Case = tuple[Step, str, dict[str, Any]]

VERSION, CATEGORY = "apple_bundle_version_01", "apple_validation_category_01"
LAUNCH = {VERSION: "1", CATEGORY: b"\x04\0\0\0"}
BASIC, USAGE = leaf_extensions()
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ROOT_PERIOD = (NOW - DAY, NOW + DAY)
SHORT_ROOT = create_root("short-lived root", period=ROOT_PERIOD)
IMPOSTOR = create_root(
    PKI.root.certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value,  # type: ignore[arg-type]
    period=(NOW - DAY, NOW + 365 * DAY),
)
STRANGER = create_root("nobody's root", period=(NOW - DAY, NOW + 365 * DAY))


def raw_nonce(change: Callable[[bytes], bytes]) -> Callable[[bytes], list[Any]]:
    """A nonce extension whose DER value is changed."""
    return lambda nonce: [(x509.UnrecognizedExtension(NONCE_OID, change(bytes.fromhex("3024a1220420") + nonce)), False)]


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda members: {key: value for key, value in members.items() if key != name}


def having(**more: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda members: {**members, **more}


def tail(**changes: Any) -> bytes:
    return cbor2.dumps({key: value for key, value in {**LAUNCH, **changes}.items() if value is not None})


def cose(**changes: Any) -> dict[int, Any]:
    """The COSE key with members changed: kty, alg, crv, x, y; None takes one out."""
    names = {"kty": 1, "alg": 3, "crv": -1, "x": -2, "y": -3, "kid": 2}
    members = {**cose_members(), **{names[name]: value for name, value in changes.items()}}
    return {key: value for key, value in members.items() if value is not None}


def flip_last(value: bytes) -> bytes:
    return value[:-1] + bytes([value[-1] ^ 1])


def version_1(certificates: list[bytes], place: int) -> list[bytes]:
    """A certificate that doesn't say its version, which is 1 then. Its extensions stay, though version 1 has none."""
    der = certificates[place]
    assert der[0:2] == der[4:6] == b"\x30\x82"
    assert der[8:13] == bytes.fromhex("a003020102")
    lengths = [(int.from_bytes(der[at : at + 2], "big") - 5).to_bytes(2, "big") for at in (2, 6)]
    changed = der[:2] + lengths[0] + der[4:6] + lengths[1] + der[13:]
    return [changed if index == place else old for index, old in enumerate(certificates)]


def unused_bits(certificates: list[bytes], place: int) -> list[bytes]:
    """A certificate that declares the last bit of its signature unused, which must be 0 then."""
    signature = x509.load_der_x509_certificate(certificates[place]).signature
    changed = replaced(len(certificates[place]) - len(signature) - 1, b"\x01")(certificates[place])
    return [changed if index == place else old for index, old in enumerate(certificates)]


def with_even_signature() -> Authority:
    while True:
        authority = intermediate()
        if authority.certificate.signature[-1] % 2 == 0:
            return authority


def other_inner_algorithm(certificates: list[bytes]) -> list[bytes]:
    """The leaf with another signature algorithm inside the signed part than outside of it."""
    sha256, sha384 = bytes.fromhex("06082a8648ce3d040302"), bytes.fromhex("06082a8648ce3d040303")
    return [certificates[0].replace(sha256, sha384, 1), certificates[1]]


CASES: list[Case] = [
    (Step.SIZE, "16 KiB and 1", {"obj": lambda obj: obj.ljust(16 * 1024 + 1, b"\0")}),
    (Step.CBOR, "16 KiB", {"obj": lambda obj: obj.ljust(16 * 1024, b"\0")}),
    (Step.CBOR, "nothing", {"obj": lambda obj: b""}),
    (Step.CBOR, "text", {"obj": lambda obj: b"attestation"}),
    (Step.CBOR, "a byte after the object", {"obj": lambda obj: obj + b"\0"}),
    (Step.CBOR, "cut short", {"obj": lambda obj: obj[:-1]}),
    (Step.CBOR, "an indefinite length", {"obj": lambda obj: b"\xbf" + obj[1:] + b"\xff"}),
    (Step.CBOR, "a tag", {"obj": lambda obj: b"\xd9\xd9\xf7" + obj}),
    (Step.CBOR, "a member twice", {"obj": lambda obj: b"\xa4" + obj[1:] + cbor2.dumps("fmt") + b"\x60"}),
    (Step.CBOR, "null", {"statement": having(receipt=None)}),
    (Step.STRUCTURE, "a list", {"members": lambda members: list(members.values())}),
    (Step.STRUCTURE, "no fmt", {"members": without("fmt")}),
    (Step.STRUCTURE, "no attStmt", {"members": without("attStmt")}),
    (Step.STRUCTURE, "no authData", {"members": without("authData")}),
    (Step.STRUCTURE, "one more member", {"members": having(ep=1)}),
    (Step.STRUCTURE, "a number as a member's name", {"members": lambda members: {**members, 1: 1}}),
    (Step.STRUCTURE, "fmt in bytes", {"members": having(fmt=b"apple-appattest")}),
    (Step.STRUCTURE, "authData in text", {"members": having(authData="a" * 200)}),
    (Step.STRUCTURE, "attStmt a list", {"statement": lambda statement: list(statement.values())}),
    (Step.STRUCTURE, "no x5c", {"statement": without("x5c")}),
    (Step.STRUCTURE, "no receipt", {"statement": without("receipt")}),
    (Step.STRUCTURE, "one more member in attStmt", {"statement": having(alg=-7)}),
    (Step.STRUCTURE, "receipt in text", {"statement": having(receipt="receipt")}),
    (Step.STRUCTURE, "x5c not a list", {"certificates": lambda x5c: x5c[0]}),
    (Step.FMT, "another format", {"members": having(fmt="apple")}),
    (Step.X5C, "no certificate", {"certificates": lambda x5c: []}),
    (Step.X5C, "no intermediate", {"certificates": lambda x5c: x5c[:1]}),
    (Step.X5C, "three certificates", {"certificates": lambda x5c: [*x5c, x5c[1]]}),
    (Step.X5C, "leaf in text", {"certificates": lambda x5c: ["leaf", x5c[1]]}),
    (Step.X5C, "intermediate in text", {"certificates": lambda x5c: [x5c[0], "intermediate"]}),
    (Step.X5C, "leaf over 4 KiB", {"certificates": lambda x5c: [x5c[0].ljust(4097, b"\0"), x5c[1]]}),
    (Step.X5C, "intermediate over 4 KiB", {"certificates": lambda x5c: [x5c[0], x5c[1].ljust(4097, b"\0")]}),
    (Step.AUTH_DATA, "empty", {"auth_data": lambda data: b""}),
    (Step.AUTH_DATA, "without the whole header", {"auth_data": lambda data: data[:36]}),
    (Step.AUTH_DATA, "the header alone", {"auth_data": lambda data: data[:37]}),
    (Step.AUTH_DATA, "without a credential", {"auth_data": lambda data: data[:55]}),
    (Step.AUTH_DATA, "without a public key", {"auth_data": lambda data: data[:87]}),
    (Step.AUTH_DATA, "a length beyond the end", {"auth_data": replaced(53, b"\xff\xff")}),
    (Step.BUNDLE_ID, "an app that isn't served", {"bundle_id": "org.evil", "app_id": f"{TEAM}.org.evil"}),
    (Step.BUNDLE_ID, "the team's name with it", {"bundle_id": f"{TEAM}.{BUNDLE}"}),
    (Step.RP_ID, "another team's app", {"app_id": f"ZZZZZZZZZZ.{BUNDLE}"}),
    (Step.RP_ID, "another app of the list", {"bundle_id": "org.example.other"}),
    *[(Step.FLAGS, f"{flags:#x}", {"flags": flags}) for flags in (0, 1, 0x41, 0x44, 0x60, 0xC1, 0xFF)],
    (Step.FLAGS, "extensions alone", {"flags": 0x80, "tail": tail()}),
    (Step.COUNTER, "1", {"counter": 1}),
    (Step.COUNTER, "the largest", {"counter": 0xFFFFFFFF}),
    (Step.AAGUID, "development in production", {"aaguid": b"appattestdevelop"}),
    (Step.AAGUID, "production in development", {"policy": policy(environment="development")}),
    (Step.AAGUID, "another", {"aaguid": bytes(16)}),
    (Step.CREDENTIAL_ID, "another", {"credential_id": bytes(32)}),
    (Step.CREDENTIAL_ID, "empty", {"credential_id": b""}),
    (Step.CREDENTIAL_ID, "shorter", {"credential_id": key_id()[:31]}),
    (Step.CREDENTIAL_ID, "longer", {"credential_id": key_id() + b"\0"}),
    (Step.COSE_KEY, "not CBOR", {"cose_bytes": lambda key: b"\xff" * 77}),
    (Step.COSE_KEY, "cut short", {"cose_bytes": lambda key: key[:-1]}),
    (Step.COSE_KEY, "an indefinite length", {"cose_bytes": lambda key: b"\xbf" + key[1:] + b"\xff"}),
    (Step.COSE_KEY, "not a map", {"cose": list(cose_members().values())}),
    (Step.COSE_KEY, "RSA", {"cose": cose(kty=3)}),
    (Step.COSE_KEY, "ES384", {"cose": cose(alg=-35)}),
    (Step.COSE_KEY, "P-384", {"cose": cose(crv=2)}),
    (Step.COSE_KEY, "one more member", {"cose": cose(kid=b"1")}),
    (Step.COSE_KEY, "one member less", {"cose": cose(alg=None)}),
    (Step.COSE_KEY, "no x", {"cose": cose(x=None)}),
    (Step.COSE_KEY, "no y", {"cose": cose(y=None)}),
    (Step.COSE_KEY, "x in text", {"cose": cose(x="x" * 32)}),
    (Step.COSE_KEY, "a short x", {"cose": cose(x=cose_members()[-2][:31])}),
    (Step.COSE_KEY, "a long y", {"cose": cose(y=cose_members()[-3] + b"\0")}),
    (Step.EXTENSIONS, "announced, but missing", {"flags": 0xC0}),
    (Step.EXTENSIONS, "a byte", {"tail": b"\0"}),
    (Step.EXTENSIONS, "not CBOR", {"tail": b"\xff"}),
    (Step.EXTENSIONS, "a byte after them", {"tail": tail() + b"\0"}),
    (Step.EXTENSIONS, "twice", {"tail": tail() + tail()}),
    (Step.EXTENSIONS, "an array", {"tail": b"\x80"}),
    (Step.EXTENSIONS, "17 of them", {"tail": tail(**{f"more{number}": 1 for number in range(15)})}),
    (Step.EXTENSIONS, "an unknown one of 257 bytes", {"tail": tail(more=b"v" * 257)}),
    (Step.EXTENSIONS, "an unknown list of 257 bytes", {"tail": tail(more=[0] * 255)}),
    (Step.EXTENSIONS, "a name of 65 bytes", {"tail": tail(**{"n" * 65: 1})}),
    (Step.EXTENSIONS, "a name that is a number", {"tail": cbor2.dumps({1: 2})}),
    (Step.EXTENSIONS, "a name twice", {"tail": b"\xa2" + 2 * cbor2.dumps("more") + b"\x01\x01"}),
    (Step.EXTENSIONS, "an unknown one twice", {"tail": b"\xa2" + 2 * (cbor2.dumps("more") + b"\x01")}),
    (Step.EXTENSIONS, "an unknown one that ends early", {"tail": b"\xa1" + cbor2.dumps("more") + b"\x42v"}),
    (Step.EXTENSIONS, "an unknown one that is missing", {"tail": b"\xa1" + cbor2.dumps("more")}),
    (Step.EXTENSIONS, "an unknown one of indefinite length", {"tail": b"\xa1" + cbor2.dumps("more") + b"\x9f\xff"}),
    (Step.EXTENSIONS, "an unknown one with a tag", {"tail": b"\xa1" + cbor2.dumps("more") + b"\xc1\x00"}),
    (Step.EXTENSIONS, "version missing, category not exact", {"tail": cbor2.dumps({CATEGORY: b"\4"})}),
    (Step.EXTENSIONS, "version in bytes", {"tail": tail(apple_bundle_version_01=b"1")}),
    (Step.EXTENSIONS, "an empty version", {"tail": tail(apple_bundle_version_01="")}),
    (Step.EXTENSIONS, "a version of 65 characters", {"tail": tail(apple_bundle_version_01="1" * 65)}),
    (Step.EXTENSIONS, "a version with a NUL", {"tail": tail(apple_bundle_version_01="1\0")}),
    (Step.EXTENSIONS, "category a number", {"tail": tail(apple_validation_category_01=4)}),
    (Step.EXTENSIONS, "a category of 3 bytes", {"tail": tail(apple_validation_category_01=b"\4\0\0")}),
    (Step.EXTENSIONS, "a category of 5 bytes", {"tail": tail(apple_validation_category_01=bytes(5))}),
    (Step.CERTIFICATE, "4 KiB", {"certificates": lambda x5c: [x5c[0].ljust(4096, b"\0"), x5c[1].ljust(4096, b"\0")]}),
    (Step.CERTIFICATE, "leaf not DER", {"certificates": lambda x5c: [b"leaf", x5c[1]]}),
    (Step.CERTIFICATE, "intermediate not DER", {"certificates": lambda x5c: [x5c[0], b""]}),
    (Step.CERTIFICATE, "a byte after the leaf", {"certificates": lambda x5c: [x5c[0] + b"\0", x5c[1]]}),
    (Step.CERTIFICATE, "leaf version 1", {"certificates": lambda x5c: version_1(x5c, 0)}),
    (Step.CERTIFICATE, "intermediate version 1", {"certificates": lambda x5c: version_1(x5c, 1)}),
    (
        Step.CERTIFICATE,
        "an extension that isn't what it's called",
        {"leaf_base": [(x509.UnrecognizedExtension(x509.BasicConstraints.oid, b"\x05\x00"), False)]},
    ),
    (
        Step.CERTIFICATE,
        "a signature with unused bits",
        {"intermediate": with_even_signature(), "certificates": lambda x5c: unused_bits(x5c, 1)},
    ),
    (Step.SIGNATURE_ALGORITHM, "leaf over SHA-224", {"leaf_algorithm": hashes.SHA224()}),
    (Step.SIGNATURE_ALGORITHM, "intermediate over SHA-224", {"intermediate": intermediate(algorithm=hashes.SHA224())}),
    (Step.SIGNATURE_ALGORITHM, "leaf by RSA", {"intermediate": intermediate(key=RSA_KEY)}),
    (Step.ISSUER, "the two the other way round", {"certificates": lambda x5c: x5c[::-1]}),
    (Step.ISSUER, "leaf of another issuer", {"leaf_signer": intermediate(subject="another")}),
    (Step.ISSUER, "leaf by the root itself", {"leaf_signer": PKI.root}),
    (Step.ISSUER, "another root", {"intermediate": intermediate(signer=STRANGER)}),
    (Step.ISSUER, "one more intermediate", {"intermediate": intermediate(signer=PKI.intermediate)}),
    (Step.VALIDITY, "before the leaf", {"now": NOW - DAY, "leaf_period": (NOW, NOW + DAY)}),
    (Step.VALIDITY, "after the leaf", {"leaf_period": (NOW - 2 * DAY, NOW - DAY)}),
    (Step.VALIDITY, "before the intermediate", {"intermediate": intermediate(period=(NOW + DAY, NOW + 9 * DAY))}),
    (Step.VALIDITY, "after the intermediate", {"intermediate": intermediate(period=(NOW - 9 * DAY, NOW - DAY))}),
    *[
        (
            Step.VALIDITY,
            f"{when} the root",
            {
                "now": now,
                "policy": policy(roots=(SHORT_ROOT.certificate,)),
                "intermediate": intermediate(signer=SHORT_ROOT, period=(NOW - 9 * DAY, NOW + 9 * DAY)),
                "leaf_period": (NOW - 9 * DAY, NOW + 9 * DAY),
            },
        )
        for when, now in (("before", NOW - 2 * DAY), ("after", NOW + 2 * DAY))
    ],
    (
        Step.CA_CONSTRAINTS,
        "intermediate without constraints",
        {"intermediate": intermediate(extensions=ca_extensions(path_length=0)[1:])},
    ),
    (
        Step.CA_CONSTRAINTS,
        "intermediate no CA",
        {"intermediate": intermediate(extensions=ca_extensions(path_length=None, ca=False))},
    ),
    (
        Step.CA_CONSTRAINTS,
        "leaf a CA",
        {"leaf_base": [(x509.BasicConstraints(ca=True, path_length=None), True), USAGE]},
    ),
    (
        Step.KEY_USAGE,
        "intermediate may not sign",
        {"intermediate": intermediate(extensions=[ca_extensions(path_length=0)[0], (key_usage(crl_sign=True), True)])},
    ),
    (Step.KEY_USAGE, "leaf may not sign", {"leaf_base": [BASIC, (key_usage(key_encipherment=True), True)]}),
    (
        Step.KEY_USAGE,
        "leaf may sign certificates",
        {"leaf_base": [BASIC, (key_usage(digital_signature=True, key_cert_sign=True), True)]},
    ),
    (Step.CRITICAL_EXTENSION, "leaf, unknown", {"leaf_base": [BASIC, USAGE, (UNKNOWN, True)]}),
    (
        Step.CRITICAL_EXTENSION,
        "leaf, known but not looked at",
        {"leaf_base": [BASIC, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), True)]},
    ),
    (
        Step.CRITICAL_EXTENSION,
        "intermediate, unknown",
        {"intermediate": intermediate(extensions=[*ca_extensions(path_length=0), (UNKNOWN, True)])},
    ),
    (
        Step.CRITICAL_EXTENSION,
        "intermediate, name constraints",
        {
            "intermediate": intermediate(
                extensions=[
                    *ca_extensions(path_length=0),
                    (x509.NameConstraints([x509.DNSName("apple.com")], None), True),
                ]
            )
        },
    ),
    (Step.NONCE, "no extension", {"leaf_nonce": lambda nonce: []}),
    (Step.NONCE, "another nonce", {"leaf_nonce": raw_nonce(flip_last)}),
    (Step.NONCE, "a byte after it", {"leaf_nonce": raw_nonce(lambda value: value + b"\0")}),
    (Step.NONCE, "in another tag", {"leaf_nonce": raw_nonce(lambda value: value.replace(b"\xa1", b"\xa0", 1))}),
    (Step.NONCE, "with a long length", {"leaf_nonce": raw_nonce(lambda value: b"\x30\x81" + value[1:])}),
    (Step.NONCE, "bare", {"leaf_nonce": raw_nonce(lambda value: value[6:])}),
    (Step.NONCE, "another challenge", {"client_data_hash": bytes(32)}),
    (Step.LEAF_KEY, "RSA", {"leaf_key": RSA_KEY}),
    (Step.LEAF_KEY, "P-384", {"leaf_key": ec.generate_private_key(ec.SECP384R1())}),
    (Step.LEAF_KEY, "secp256k1", {"leaf_key": ec.generate_private_key(ec.SECP256K1())}),
    (Step.KEY_ID, "another key is certified", {"leaf_key": OTHER_KEY}),
    (
        Step.KEY_ID,
        "another key is certified, and in the authenticator data",
        {"leaf_key": OTHER_KEY, "cose": cose_members(OTHER_KEY)},
    ),
    (Step.KEY_ID, "not of the key", {"key_id": bytes(32), "credential_id": bytes(32)}),
    (Step.PUBLIC_KEY, "another key in the authenticator data", {"cose": cose_members(OTHER_KEY)}),
    (Step.PUBLIC_KEY, "another y", {"cose": cose(y=flip_last(cose_members()[-3]))}),
    (
        Step.CHAIN,
        "leaf by an impostor of the intermediate",
        {"leaf_signer": type(PKI.intermediate)(PKI.intermediate.certificate, ec.generate_private_key(ec.SECP384R1()))},
    ),
    (Step.CHAIN, "an impostor of the root", {"intermediate": intermediate(signer=IMPOSTOR)}),
    (Step.CHAIN, "a changed leaf", {"certificates": lambda x5c: [flip_last(x5c[0]), x5c[1]]}),
    (Step.CHAIN, "a changed intermediate", {"certificates": lambda x5c: [x5c[0], flip_last(x5c[1])]}),
    (Step.CHAIN, "two algorithms in the leaf", {"certificates": other_inner_algorithm}),
    (Step.CHAIN, "an intermediate with a key of another kind", {"intermediate": intermediate(certified_key=RSA_KEY)}),
]


@pytest.mark.parametrize(("step", "name", "changes"), CASES, ids=[f"{case[0]}: {case[1]}" for case in CASES])
def test_each_broken_step_is_named(step: Step, name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(AppAttestError) as caught:
        AttestationForge(**changes).verify()
    assert caught.value.step is step
    assert isinstance(caught.value, Malformed if step in (Step.SIZE, Step.CBOR) else Rejected)


def test_every_step_of_an_attestation_is_broken_by_some_case() -> None:
    elsewhere = {Step.BASE64, Step.JSON, Step.STORED_KEY, Step.SIGNATURE}
    assert {case[0] for case in CASES} == set(Step) - elsewhere


ACCEPTED: dict[str, dict[str, Any]] = {
    "as before iOS 27": {},
    "iOS 27, with the flag clear as in Apple's sample": {"tail": tail()},
    "iOS 27, with the flag set": {"tail": tail(), "flags": 0xC0},
    "an extended key usage and OIDs of Apple's own in the leaf": {
        "leaf_base": [
            BASIC,
            USAGE,
            (x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.2.840.113635.100.4.24")]), False),
            (UNKNOWN, False),
        ]
    },
    "a leaf without constraints and usage": {"leaf_base": []},
    "a leaf from this second on": {"leaf_period": (NOW, NOW + DAY)},
    "a leaf until this second": {"leaf_period": (NOW - DAY, NOW)},
    "an intermediate from this second on": {"intermediate": intermediate(period=(NOW, NOW + DAY))},
    "an intermediate until this second": {"intermediate": intermediate(period=(NOW - DAY, NOW))},
    **{
        f"a root {edge} this second": {
            "now": now,
            "policy": policy(roots=(SHORT_ROOT.certificate,)),
            "intermediate": intermediate(signer=SHORT_ROOT),
        }
        for edge, now in zip(("from", "until"), ROOT_PERIOD, strict=True)
    },
    "a leaf over SHA-384": {"leaf_algorithm": hashes.SHA384()},
    "another intermediate of the root": {"intermediate": intermediate()},
    "an intermediate without a usage": {"intermediate": intermediate(extensions=ca_extensions(path_length=0)[:1])},
    "one root of several": {"policy": policy(roots=(STRANGER.certificate, PKI.root.certificate))},
    "one root of several with one name": {"policy": policy(roots=(IMPOSTOR.certificate, PKI.root.certificate))},
    "development in development": {"policy": policy(environment="development"), "aaguid": b"appattestdevelop"},
    "members in another order": {"members": lambda members: dict(reversed(members.items()))},
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_genuine_attestation_is_accepted(name: str) -> None:
    forge = AttestationForge(**ACCEPTED[name])
    assert asdict(forge.verify()) == {
        "key_id": key_id(),
        "public_key_x962": device.x962(KEY.public_key()),
        "counter": 0,
        "environment": forge.policy.environment,
        "bundle_id": BUNDLE,
        "receipt": b"receipt",
        "launch": {
            "bundle_version": "1" if forge.tail else None,
            "validation_category": 4 if forge.tail else None,
            "unknown": 0,
            "incomplete": False,
        },
    }


@pytest.mark.parametrize("flags", [0x40, 0xC0])
@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        (tail(more=True), ("1", 4, 1, False)),
        (tail(**{f"more{number}": b"v" * 256 for number in range(14)}), ("1", 4, 14, False)),
        (tail(more=[1.5, {"deep": [[[[[[None]]]]]]}], other=-1), ("1", 4, 2, False)),
        (tail(more=[0] * 254), ("1", 4, 1, False)),
        (tail(apple_bundle_version_02="2", apple_validation_category_02=b"\4"), ("1", 4, 2, False)),
        (cbor2.dumps({VERSION: "7"}), ("7", None, 0, True)),
        (cbor2.dumps({CATEGORY: b"\4\0\0\0"}), (None, 4, 0, True)),
        (cbor2.dumps({CATEGORY: b"\4\0\0\0", "more": ""}), (None, 4, 1, True)),
        (cbor2.dumps({"apple_bundle_version_02": "7"}), (None, None, 1, True)),
        (b"\xa0", (None, None, 0, True)),
    ],
    ids=range(10),
)
def test_an_extension_that_apple_adds_or_leaves_out_refuses_no_device(
    extensions: bytes, expected: tuple[Any, ...], flags: int
) -> None:
    assert AttestationForge(tail=extensions, flags=flags).verify().launch == Launch(*expected)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text() | st.sampled_from([VERSION, CATEGORY]), VALUES))
def test_any_extensions_are_ignored_or_refused_at_their_step(extensions: dict[str, Any]) -> None:
    try:
        made = AttestationForge(tail=cbor2.dumps(extensions)).verify().launch
    except Rejected as error:
        assert error.step is Step.EXTENSIONS  # noqa: PT017 - it may be accepted
        known = [name for name in (VERSION, CATEGORY) if name in extensions]
        long = [name for name, value in extensions.items() if len(name.encode()) > 64 or len(cbor2.dumps(value)) > 256]
        assert known or long or len(extensions) > 16
        return
    assert made.unknown == len(extensions.keys() - {VERSION, CATEGORY})
    assert made.incomplete == (not {VERSION, CATEGORY} <= extensions.keys())
    assert made.bundle_version == extensions.get(VERSION)


def test_no_error_repeats_what_came_with_the_object() -> None:
    with pytest.raises(Rejected) as caught:
        AttestationForge(members=having(fmt="secret-format")).verify()
    assert "secret" not in str(caught.value)


def test_every_step_says_what_it_is_about() -> None:
    assert all(step.__doc__ and step.__doc__ != Step.__doc__ for step in Step)
    assert len({step.__doc__ for step in Step}) == len(Step)
