"""Changed objects: whatever is done to a genuine one, it's refused with a named error.

3,000 objects of each kind by default, 200,000 with MLPA_TEST_FULL=1.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import cbor2
import pytest
from hypothesis import given, strategies as st

from services.auth.appattest.assertion import verify_assertion
from services.auth.appattest.attestation import verify_attestation
from services.auth.appattest.errors import AppAttestError
from services.local import device
from tests.services.auth.appattest.forge import AssertionForge, AttestationForge

OBJECTS = 200_000 if os.environ.get("MLPA_TEST_FULL") == "1" else 3_000
# cryptography warns of serial numbers that aren't positive, which changed certificates have.
pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number")

PIECES = [
    b"",
    b"\0",
    b"\xff",
    b"\xa0",
    b"\x80",
    b"\xf6",
    b"\xbf",
    b"\xd9\xd9\xf7",
    b"\x5f",
    b"\x30\x80",
    b"\x02\x01\x00",
]
VALUES: list[Any] = [None, True, 0, -1, 2**64 - 1, 1.5, b"", "", [], {}, b"\0" * 32, "apple-appattest", [b"", b""]]

TAIL = device.launch_extensions("1", 4)
MORE = cbor2.dumps({**cbor2.loads(TAIL), "more": [True, 1.5, b"", {"deep": [[]]}]})
ATTESTATIONS = [AttestationForge(), AttestationForge(tail=TAIL, flags=0xC0), AttestationForge(tail=MORE)]
ASSERTIONS = [AssertionForge(), AssertionForge(tail=TAIL), AssertionForge(tail=MORE, flags=0x80)]


def change_bytes(obj: bytes, chance: random.Random) -> bytes:
    """A few flips, cuts, repetitions and insertions."""
    changed = bytearray(obj)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        start = chance.randrange(len(changed) + 1)
        end = min(len(changed), start + chance.choice((1, 1, 2, 4, 32, 500)))
        match chance.randrange(5):
            case 0 if start < len(changed):
                changed[start] ^= 1 << chance.randrange(8)
            case 1:
                changed[start:end] = chance.randbytes(end - start)
            case 2:
                del changed[start:end]
            case 3:
                changed[start:start] = changed[start:end]
            case _:
                changed[start:start] = chance.choice(PIECES)
    return bytes(changed)


def change_tree(obj: bytes, chance: random.Random) -> bytes:
    """A change of one node, encoded again, so that it gets behind the parser."""
    return cbor2.dumps(_changed(cbor2.loads(obj), chance))


def _changed(node: Any, chance: random.Random) -> Any:
    if chance.random() < 0.1:
        return chance.choice(VALUES)
    match node:
        case dict() if node:
            name = chance.choice(list(node))
            match chance.randrange(8):
                case 0:
                    return {key: value for key, value in node.items() if key != name}
                case 1:
                    return {**node, chance.choice(["x", 7, b"x", *node]): chance.choice(VALUES)}
                case _:
                    return {**node, name: _changed(node[name], chance)}
        case list() if node:
            place = chance.randrange(len(node))
            if chance.random() < 0.2:
                return chance.choice([node[::-1], node[:place], [*node, node[place]]])
            return [*node[:place], _changed(node[place], chance), *node[place + 1 :]]
        case bytes() if node:
            return change_bytes(node, chance)
        case _:
            return chance.choice(VALUES)


def signed_parts(obj: bytes) -> Any:
    """An attestation but for its receipt, which nothing in the object vouches for."""
    members = cbor2.loads(obj)
    receipt = members["attStmt"].pop("receipt")
    assert isinstance(receipt, bytes)
    return members


def check_changes(
    genuine: bytes,
    change: Callable[[bytes, random.Random], bytes],
    verify: Callable[[bytes], None],
    signed: Callable[[bytes], object],
) -> None:
    """Change an object again and again: one that is accepted has the signed parts of the genuine one."""
    verify(genuine)
    chance = random.Random(5)
    for _ in range(OBJECTS // 4):
        changed = change(genuine, chance)
        try:
            verify(changed)
        except AppAttestError:
            continue
        assert signed(changed) == signed(genuine)


@pytest.mark.parametrize("change", [change_bytes, change_tree])
@pytest.mark.parametrize("forge", ATTESTATIONS, ids=["before iOS 27", "iOS 27", "later"])
def test_no_changed_attestation_is_accepted(
    forge: AttestationForge, change: Callable[[bytes, random.Random], bytes]
) -> None:
    def verify(obj: bytes) -> None:
        verify_attestation(
            obj,
            client_data_hash=forge.client_data_hash,
            key_id=forge.key_id,
            bundle_id=forge.bundle_id,
            policy=forge.policy,
            now=forge.now,
        )

    check_changes(forge.build(), change, verify, signed_parts)


@pytest.mark.parametrize("change", [change_bytes, change_tree])
@pytest.mark.parametrize("forge", ASSERTIONS, ids=["before iOS 27", "iOS 27", "later"])
def test_no_changed_assertion_is_accepted(
    forge: AssertionForge, change: Callable[[bytes, random.Random], bytes]
) -> None:
    def verify(obj: bytes) -> None:
        verify_assertion(
            obj,
            client_data_hash=forge.client_data_hash,
            public_key_x962=forge.public_key_x962,
            last_counter=forge.last_counter,
            bundle_id=forge.bundle_id,
            policy=forge.policy,
        )

    check_changes(forge.build(), change, verify, lambda obj: obj)


def test_no_certificate_however_broken_breaks_the_verifier() -> None:
    """Changes inside of the certificates alone, where the parser of others does the work."""
    genuine, chance = ATTESTATIONS[0].build(), random.Random(7)
    for _ in range(OBJECTS):
        members = cbor2.loads(genuine)
        place = chance.randrange(2)
        members["attStmt"]["x5c"][place] = change_bytes(members["attStmt"]["x5c"][place], chance)
        changed = cbor2.dumps(members)
        try:
            verify_attestation(
                changed,
                client_data_hash=ATTESTATIONS[0].client_data_hash,
                key_id=ATTESTATIONS[0].key_id,
                bundle_id=ATTESTATIONS[0].bundle_id,
                policy=ATTESTATIONS[0].policy,
                now=ATTESTATIONS[0].now,
            )
        except AppAttestError:
            continue
        assert signed_parts(changed) == signed_parts(genuine)


@given(st.binary(max_size=600), st.binary(max_size=70))
def test_any_bytes_are_refused(obj: bytes, key: bytes) -> None:
    with pytest.raises(AppAttestError):
        AttestationForge(obj=lambda _: obj).verify()
    with pytest.raises(AppAttestError):
        AssertionForge(obj=lambda _: obj, public_key_x962=key).verify()
