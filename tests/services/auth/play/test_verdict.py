"""The check of a decoded integrity token: it only ever accepts or names a step."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from services.auth.errors import InvalidRequest
from services.auth.exchange.credentials import play
from services.auth.play import verdict
from services.auth.play.verdict import Policy, Rejected, Step
from services.local.play import CERTIFICATE, PACKAGE, Install, InstallOrder, StandIn

NOW = 1_800_000_000.0
INSTALL = Install("2F1A6C1E-8D0B-4f57-9F0C-3b6f1f3c9a10")
POLICY = Policy(frozenset({PACKAGE}), frozenset({CERTIFICATE}), max_age=600)

#: Members whose absence, or another value, changes the answer.
DECISIVE = [
    ("requestDetails", "requestPackageName"),
    ("requestDetails", "requestHash"),
    ("requestDetails", "timestampMillis"),
    ("appIntegrity", "appRecognitionVerdict"),
    ("appIntegrity", "packageName"),
    ("appIntegrity", "certificateSha256Digest"),
    ("deviceIntegrity", "deviceRecognitionVerdict"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    return StandIn(clock=lambda: NOW).payload(InstallOrder(INSTALL.request_hash))


def step(payload: Any, **changes: Any) -> Step | None:
    """The step at which a payload is rejected; None if it is accepted."""
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    given = {"package": PACKAGE, "user_id": INSTALL.user_id, "level": "device", "policy": POLICY, "now": NOW}
    try:
        verdict.check(raw, **{**given, **changes})
    except Rejected as rejected:
        return rejected.step
    return None


def test_a_good_one_is_accepted(good: dict[str, Any]) -> None:
    assert step(good) is None


@pytest.mark.parametrize(
    ("age", "rejected"), [(0, None), (600, None), (601, Step.AGE), (-30, None), (-31, Step.AGE), (10**9, Step.AGE)]
)
def test_the_window_of_its_age(good: dict[str, Any], age: float, rejected: Step | None) -> None:
    assert step(good, now=NOW + age) == rejected


def test_the_digest_is_of_the_id_as_it_was_sent(good: dict[str, Any]) -> None:
    assert step(good, user_id=INSTALL.user_id.lower()) is Step.REQUEST_HASH
    shouted = copy.deepcopy(good)
    shouted["requestDetails"]["requestHash"] = INSTALL.request_hash.upper()
    assert step(shouted) is Step.REQUEST_HASH


def test_a_testers_verdict_needs_a_policy_that_takes_it(good: dict[str, Any]) -> None:
    testing = {**good, "testingDetails": {"isTestingResponse": True}}
    assert step(testing) is Step.TESTING
    assert step(testing, policy=Policy(POLICY.packages, POLICY.certificates, 600, testing=True)) is None


@pytest.mark.parametrize("word", ["UNRECOGNIZED_VERSION", "UNEVALUATED", "UNKNOWN", "play_recognized", ""])
def test_an_app_that_google_play_does_not_recognise_is_rejected(good: dict[str, Any], word: str) -> None:
    assert step({**good, "appIntegrity": {**good["appIntegrity"], "appRecognitionVerdict": word}}) is Step.RECOGNITION


def test_without_certificates_to_compare_any_is_taken(good: dict[str, Any]) -> None:
    other = copy.deepcopy(good)
    other["appIntegrity"]["certificateSha256Digest"] = ["A" * 43]
    assert step(other) is Step.CERTIFICATE
    assert step(other, policy=Policy(POLICY.packages, frozenset(), 600)) is None


def test_digests_are_compared_with_or_without_padding(good: dict[str, Any]) -> None:
    padded = copy.deepcopy(good)
    padded["appIntegrity"]["certificateSha256Digest"] = ["A" * 43, f"{CERTIFICATE}="]
    assert step(padded) is None


@given(data=st.data())
@pytest.mark.parametrize(("part", "member"), DECISIVE)
def test_any_other_value_of_a_decisive_member_is_rejected(
    good: dict[str, Any], part: str, member: str, data: st.DataObject
) -> None:
    changed = copy.deepcopy(good)
    value = data.draw(JSON.filter(lambda drawn: drawn != good[part][member] and str(drawn) != good[part][member]))
    changed[part][member] = value
    assert step(changed) is not None
    del changed[part][member]
    assert step(changed) is not None


@given(extra=JSON)
def test_members_that_google_may_add_change_nothing(good: dict[str, Any], extra: Any) -> None:
    more = {**good, "environmentDetails": extra, "appIntegrity": {**good["appIntegrity"], "more": extra}}
    assert step(more) is None


@given(raw=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_the_bytes_it_names_a_step(raw: bytes) -> None:
    assert step(raw) is Step.PAYLOAD


@given(raw=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_a_client_sends_is_malformed_and_nothing_worse(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        play.parse(raw)


@given(st.uuids(), st.text(alphabet="".join(map(chr, range(33, 127))), min_size=1))
def test_what_an_install_sends_is_read(user_id: Any, integrity_token: str) -> None:
    raw = json.dumps({"user_id": str(user_id), "integrity_token": integrity_token, "more": [1]}).encode()
    assert play.parse(raw) == play.PlayInstall(str(user_id), integrity_token)
