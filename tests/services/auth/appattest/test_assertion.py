"""Assertions: those that are accepted, and each way in which each step can be broken."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from services.auth.appattest.assertion import Assertion
from services.auth.appattest.auth_data import Launch
from services.auth.appattest.errors import AppAttestError, Malformed, Rejected, Step
from services.local import device
from tests.services.auth.appattest.forge import BUNDLE, KEY, OTHER_KEY, TEAM, AssertionForge, policy, replaced

TAIL = device.launch_extensions("2.1", 2)
FURTHER = cbor2.dumps({**cbor2.loads(TAIL), "apple_new_01": True, "other": [{"a": 1.5}, None]})
POINT = device.x962(KEY.public_key())


def raw_signature(signature: bytes) -> bytes:
    """r and s side by side, as JWS has them, instead of DER."""
    r, s = decode_dss_signature(signature)
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


CASES: list[tuple[Step, str, dict[str, Any]]] = [
    (Step.SIZE, "6 KiB and 1", {"obj": lambda obj: obj.ljust(6 * 1024 + 1, b"\0")}),
    (Step.CBOR, "6 KiB", {"obj": lambda obj: obj.ljust(6 * 1024, b"\0")}),
    (Step.CBOR, "nothing", {"obj": lambda obj: b""}),
    (Step.CBOR, "a byte after the object", {"obj": lambda obj: obj + b"\0"}),
    (Step.CBOR, "cut short", {"obj": lambda obj: obj[:-1]}),
    (Step.CBOR, "a tag", {"obj": lambda obj: b"\xc1" + obj}),
    (Step.STRUCTURE, "a list", {"members": lambda members: list(members.values())}),
    (Step.STRUCTURE, "no signature", {"members": lambda members: {"authenticatorData": b""}}),
    (Step.STRUCTURE, "no authenticatorData", {"members": lambda members: {"signature": b""}}),
    (Step.STRUCTURE, "one more member", {"members": lambda members: {**members, "userHandle": b""}}),
    (Step.STRUCTURE, "signature in text", {"members": lambda members: {**members, "signature": "s"}}),
    (
        Step.STRUCTURE,
        "authenticatorData in text",
        {"members": lambda members: {**members, "authenticatorData": "a" * 37}},
    ),
    (Step.AUTH_DATA, "without the whole header", {"auth_data": lambda data: data[:36]}),
    (Step.BUNDLE_ID, "an app that isn't served", {"bundle_id": "org.evil", "app_id": f"{TEAM}.org.evil"}),
    (Step.RP_ID, "another team's app", {"app_id": f"ZZZZZZZZZZ.{BUNDLE}"}),
    (Step.RP_ID, "another app of the list", {"bundle_id": "org.example.other"}),
    *[
        (Step.FLAGS, f"{flags:#x}", {"flags": flags, "tail": TAIL})
        for flags in (0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x41, 0x05, 0x81, 0xC4, 0xFF)
    ],
    *[(Step.EXTENSIONS, f"{flags:#x} announces some, but there are none", {"flags": flags}) for flags in (0x80, 0xC0)],
    (Step.EXTENSIONS, "a byte", {"tail": b"\0"}),
    (Step.EXTENSIONS, "a byte after them", {"tail": TAIL + b"\0"}),
    (Step.EXTENSIONS, "a credential", {"tail": bytes(16) + b"\0\x20" + bytes(32)}),
    (Step.EXTENSIONS, "a known one that isn't exact", {"tail": cbor2.dumps({"apple_bundle_version_01": b"1"})}),
    (Step.COUNTER, "the last one again", {"counter": 7}),
    (Step.COUNTER, "an older one", {"counter": 6}),
    (Step.COUNTER, "0 on the first assertion", {"counter": 0, "last_counter": 0}),
    (Step.STORED_KEY, "none", {"public_key_x962": b""}),
    (Step.STORED_KEY, "not on the curve", {"public_key_x962": replaced(64, bytes([POINT[64] ^ 1]))(POINT)}),
    (Step.STORED_KEY, "the compressed point", {"public_key_x962": bytes([2 + POINT[64] % 2]) + POINT[1:33]}),
    (
        Step.STORED_KEY,
        "on another curve",
        {"public_key_x962": device.x962(ec.generate_private_key(ec.SECP384R1()).public_key())},
    ),
    (Step.SIGNATURE, "by another key", {"key": OTHER_KEY}),
    (Step.SIGNATURE, "under other client data", {"client_data_hash": bytes(32)}),
    (Step.SIGNATURE, "over the nonce, not hashed again", {"hashed_once": True}),
    (Step.SIGNATURE, "empty", {"signature": lambda signature: b""}),
    (Step.SIGNATURE, "not DER", {"signature": raw_signature}),
    (Step.SIGNATURE, "a byte after it", {"signature": lambda signature: signature + b"\0"}),
    (
        Step.SIGNATURE,
        "a counter raised afterwards",
        {
            "members": lambda members: {
                **members,
                "authenticatorData": replaced(33, b"\x7f")(members["authenticatorData"]),
            }
        },
    ),
]


@pytest.mark.parametrize(("step", "name", "changes"), CASES, ids=[f"{case[0]}: {case[1]}" for case in CASES])
def test_each_broken_step_is_named(step: Step, name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(AppAttestError) as caught:
        AssertionForge(**changes).verify()
    assert caught.value.step is step
    assert isinstance(caught.value, Malformed if step in (Step.SIZE, Step.CBOR) else Rejected)


def test_as_many_extensions_as_may_follow_fit_in_an_assertion() -> None:
    names = [f"{number:x}".rjust(64, "x") for number in range(14)]
    most = cbor2.dumps({**cbor2.loads(TAIL), **dict.fromkeys(names, b"v" * 256)})
    assert AssertionForge(tail=most).verify().launch.unknown == 14


def test_every_step_of_an_assertion_is_broken_by_some_case() -> None:
    assert {case[0] for case in CASES} == {
        Step.SIZE,
        Step.CBOR,
        Step.STRUCTURE,
        Step.AUTH_DATA,
        Step.BUNDLE_ID,
        Step.RP_ID,
        Step.FLAGS,
        Step.EXTENSIONS,
        Step.COUNTER,
        Step.STORED_KEY,
        Step.SIGNATURE,
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Assertion(8, BUNDLE, Launch())),
        ({"counter": 1, "last_counter": 0}, Assertion(1, BUNDLE, Launch())),
        ({"counter": 0xFFFFFFFF}, Assertion(0xFFFFFFFF, BUNDLE, Launch())),
        ({"tail": TAIL}, Assertion(8, BUNDLE, Launch("2.1", 2))),
        ({"flags": 0x00}, Assertion(8, BUNDLE, Launch())),
        *[({"tail": TAIL, "flags": flags}, Assertion(8, BUNDLE, Launch("2.1", 2))) for flags in (0x00, 0x80, 0xC0)],
        ({"tail": FURTHER, "flags": 0xC0}, Assertion(8, BUNDLE, Launch("2.1", 2, 2))),
        ({"tail": cbor2.dumps({"apple_bundle_version_01": "1"})}, Assertion(8, BUNDLE, Launch("1", None, 0, True))),
        ({"tail": device.launch_extensions("9" * 64, 2**32 - 1)}, Assertion(8, BUNDLE, Launch("9" * 64, 2**32 - 1))),
        ({"policy": policy(environment="development")}, Assertion(8, BUNDLE, Launch())),
    ],
)
def test_a_genuine_assertion_is_accepted(changes: dict[str, Any], expected: Assertion) -> None:
    assert AssertionForge(**changes).verify() == expected
