"""Each refusal of a Security Event Token by its name, and what is read from those of FxA."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, strategies as st
from jose import jwt

from services.auth.fxa import security_events
from services.auth.fxa.security_events import MAX_CHARACTERS, SCHEMA, TYPES, AccountEvents, Reason, Refused
from services.local.fxa import EventOrder, StandIn
from services.local.fxa_keys import KeyRing, SigningKey
from tests.services.auth.fxa.harness import ISSUER, UID
from tests.support.clock import Clock

CLIENT = "5882386c6d801776"
NOW = 1_800_000_000.25
PASSWORD = f"{SCHEMA}password-change"


@pytest.fixture(scope="session")
def fxa(fxa_keys: list[SigningKey]) -> StandIn:
    return StandIn(ISSUER, KeyRing(fxa_keys), clock=Clock(NOW))


def claims(**changes: Any) -> dict[str, Any]:
    made = {
        "iss": f"{ISSUER}/",
        "aud": CLIENT,
        "sub": UID,
        "iat": NOW - 1.5,
        "jti": "e19ed6c5-4816-4171-aa43-56ffe80dbda1",
        "events": {PASSWORD: {"changeTime": int(NOW * 1000)}},
        **changes,
    }
    return {name: value for name, value in made.items() if value is not ...}


def read(fxa: StandIn, token: str) -> AccountEvents:
    unverified = security_events.parse(token)
    key = fxa.ring.public_key(unverified.kid)
    assert key is not None
    return security_events.verify(unverified, key, issuer=ISSUER, client_ids={CLIENT, "other"}, now=NOW)


def refusal(fxa: StandIn, token: str) -> Reason:
    with pytest.raises(Refused) as caught:
        read(fxa, token)
    assert str(caught.value) == caught.value.reason  # nothing of the token
    return caught.value.reason


@pytest.mark.parametrize("event", ["password-change", "delete-user", "profile-change", "subscription-state-change"])
def test_an_event_as_fxa_makes_it_is_read(fxa: StandIn, event: Any) -> None:
    token = fxa.security_event(EventOrder(UID, event))
    assert json.loads(base64.urlsafe_b64decode(token.partition(".")[0] + "==")).keys() == {"alg", "kid"}
    events = read(fxa, token)
    assert (events.uid, events.types, events.expires_at) == (UID, (event,), NOW + 600)
    assert events.deleted == (event == "delete-user")
    assert (events.password_changed_ms is not None) == (event == "password-change")
    assert events.jti != read(fxa, fxa.security_event(EventOrder(UID, event))).jti


@pytest.mark.parametrize("typ", ["JWT", "jwt", "secevent+jwt", "SecEvent+JWT", "application/secevent+jwt"])
def test_the_media_types_of_an_event_are_taken(fxa: StandIn, typ: str) -> None:
    assert read(fxa, fxa.sign_event(claims(), {"typ": typ})).uid == UID


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"typ": "at+jwt"}, Reason.TYPE),
        ({"typ": "at+JWT"}, Reason.TYPE),
        ({"typ": "application/at+jwt"}, Reason.TYPE),
        ({"typ": ""}, Reason.TYPE),
        ({"typ": "logout+jwt"}, Reason.TYPE),
        ({"typ": None}, Reason.HEADER),
        ({"alg": "none"}, Reason.HEADER),
        ({"alg": "HS256"}, Reason.HEADER),
        ({"alg": "RS512"}, Reason.HEADER),
        ({"kid": ""}, Reason.HEADER),
        ({"kid": 1}, Reason.HEADER),
        ({"crit": ["b64"]}, Reason.EXTENSION),
        ({"b64": False}, Reason.EXTENSION),
        ({"jwk": {}}, Reason.EXTENSION),
        ({"x5u": "https://evil.test"}, Reason.EXTENSION),
        ({"x5c": []}, Reason.EXTENSION),
    ],
    ids=str,
)
def test_a_header_other_than_an_events_is_refused(fxa: StandIn, header: dict[str, Any], reason: Reason) -> None:
    assert refusal(fxa, fxa.sign_event(claims(), header)) is reason


def test_jku_is_ignored(fxa: StandIn) -> None:
    for jku in ("https://evil.test/keys", 1, None):
        assert read(fxa, fxa.sign_event(claims(), {"jku": jku})).uid == UID


def test_a_member_that_occurs_twice_is_refused(fxa: StandIn) -> None:
    key = fxa.ring.signing

    def sign(header: str, payload: str) -> str:
        text = b".".join(base64.urlsafe_b64encode(part.encode()).rstrip(b"=") for part in (header, payload))
        return (text + b"." + base64.urlsafe_b64encode(key.private.sign(text)).rstrip(b"=")).decode()

    header, payload = json.dumps({"alg": "RS256", "kid": key.kid}), json.dumps(claims())
    assert read(fxa, sign(header, payload)).uid == UID
    assert refusal(fxa, sign(header[:-1] + ', "alg": "RS256"}', payload)) is Reason.HEADER
    assert refusal(fxa, sign(header, payload[:-1] + f', "sub": "{UID}"}}')) is Reason.CLAIMS
    twice = payload.replace('{"changeTime": ', '{"changeTime": 1, "changeTime": ')
    assert refusal(fxa, sign(header, twice)) is Reason.CLAIMS


def test_what_is_no_compact_jws_is_refused(fxa: StandIn) -> None:
    token = fxa.sign_event(claims())
    for text in ("", "a", "a.b", f"{token}.c", f"{token}=", token.replace(".", ". "), "é.é.é", f"{token}\n"):
        assert refusal(fxa, text) is Reason.FORM
    assert refusal(fxa, "a" * (MAX_CHARACTERS + 1)) is Reason.LENGTH
    assert refusal(fxa, "a.b.c") is Reason.HEADER


def test_a_signature_of_somebody_else_is_refused_before_anything_is_read(fxa: StandIn) -> None:
    stranger = StandIn("https://evil.test", KeyRing([SigningKey.generate()] * 3), clock=Clock(NOW))
    for made in (claims(), claims(iat=0), {}):
        assert refusal(fxa, stranger.sign_event(made, {"kid": fxa.ring.signing.kid})) is Reason.SIGNATURE
    head, payload, signature = fxa.sign_event(claims()).split(".")
    assert refusal(fxa, f"{head}.{payload[:-4]}AAAA.{signature}") is Reason.SIGNATURE
    assert refusal(fxa, f"{head}.{payload}.{signature[:-6]}AAAAAA") is Reason.SIGNATURE
    confused = jwt.encode(claims(), fxa.ring.signing.public()["n"], "HS256", headers={"kid": fxa.ring.signing.kid})
    assert refusal(fxa, confused) is Reason.HEADER


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"iss": "https://accounts.firefox.com.evil.test/"}, Reason.ISSUER),
        ({"iss": f"{ISSUER}//"}, Reason.ISSUER),
        ({"iss": ""}, Reason.ISSUER),
        ({"iss": ...}, Reason.CLAIMS),
        ({"iss": [ISSUER]}, Reason.CLAIMS),
        ({"aud": "0" * 16}, Reason.AUDIENCE),
        ({"aud": CLIENT.upper()}, Reason.AUDIENCE),
        ({"aud": []}, Reason.AUDIENCE),
        ({"aud": ["0" * 16]}, Reason.AUDIENCE),
        ({"aud": ...}, Reason.CLAIMS),
        ({"aud": {CLIENT: 1}}, Reason.CLAIMS),
        ({"sub": ...}, Reason.CLAIMS),
        ({"sub": UID.upper()}, Reason.CLAIMS),
        ({"sub": f"{UID}\n"}, Reason.CLAIMS),
        ({"sub": f"{UID}:ai"}, Reason.CLAIMS),
        ({"jti": ...}, Reason.CLAIMS),
        ({"jti": ""}, Reason.CLAIMS),
        ({"jti": 7}, Reason.CLAIMS),
        ({"jti": "a" * 129}, Reason.CLAIMS),
        ({"jti": "a\0"}, Reason.CLAIMS),
        ({"iat": ...}, Reason.CLAIMS),
        ({"iat": True}, Reason.CLAIMS),
        ({"iat": str(int(NOW))}, Reason.CLAIMS),
        ({"iat": -1}, Reason.CLAIMS),
        ({"iat": 1e300}, Reason.CLAIMS),
        ({"iat": NOW - 600.5}, Reason.AGE),
        ({"iat": NOW + 600.5}, Reason.AGE),
        ({"iat": NOW * 1000}, Reason.AGE),
        ({"exp": NOW}, Reason.AGE),
        ({"exp": "x"}, Reason.CLAIMS),
        ({"nbf": NOW + 31}, Reason.AGE),
        ({"events": ...}, Reason.CLAIMS),
        ({"events": {}}, Reason.EVENTS),
        ({"events": []}, Reason.EVENTS),
        ({"events": None}, Reason.EVENTS),
        ({"events": {PASSWORD: None}}, Reason.EVENTS),
        ({"events": {PASSWORD: [1]}}, Reason.EVENTS),
        ({"events": {f"{SCHEMA}x": "1", PASSWORD: {"changeTime": 1}}}, Reason.EVENTS),
        ({"events": {f"{SCHEMA}{number}": {} for number in range(17)}}, Reason.EVENTS),
    ],
    ids=str,
)
def test_claims_other_than_an_events_are_refused(fxa: StandIn, change: dict[str, Any], reason: Reason) -> None:
    assert refusal(fxa, fxa.sign_event(claims(**change))) is reason
    assert reason.signed


@pytest.mark.parametrize(
    "change",
    [
        {"iss": ISSUER},
        {"aud": ["0" * 16, CLIENT]},
        {"iat": int(NOW)},
        {"iat": NOW - 600},
        {"iat": NOW + 600},
        {"exp": NOW + 1, "nbf": NOW + 30},
        {"jti": "a" * 128},
        {"txn": 1, "toe": 1, "unknown": {"deep": [[[]]]}},
    ],
    ids=str,
)
def test_claims_as_they_may_be_are_taken(fxa: StandIn, change: dict[str, Any]) -> None:
    assert read(fxa, fxa.sign_event(claims(**change))).password_changed_ms == int(NOW * 1000)


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        (int(NOW * 1000), int(NOW * 1000)),
        (str(int(NOW * 1000)), int(NOW * 1000)),
        (1565721242227.9, 1565721242227),
        (0, 0),
        (int(NOW * 1000) + 30_000, int(NOW * 1000) + 30_000),
        (int(NOW * 1000) + 30_001, None),
        (str(int(NOW * 1000) + 30_001), None),
        (-1, None),
        ("-1", None),
        ("+1", None),
        ("", None),
        ("1.5", None),
        (" 1", None),
        ("1\n", None),
        ("١", None),
        ("9" * 17, None),
        (10**400, None),
        (True, None),
        (None, None),
        (..., None),
        ([1], None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_time_of_a_change_is_a_number_or_digits_and_not_ahead(fxa: StandIn, value: Any, ms: int | None) -> None:
    event = {} if value is ... else {"changeTime": value}
    token = fxa.sign_event(claims(events={PASSWORD: event}))
    if ms is None:
        assert refusal(fxa, token) in (Reason.CHANGE_TIME, Reason.CLAIMS)
    else:
        assert read(fxa, token).password_changed_ms == ms


def test_several_events_are_read_and_unknown_ones_have_one_name(fxa: StandIn) -> None:
    named = {PASSWORD: {"changeTime": "5"}, f"{SCHEMA}delete-user": {}, f"{SCHEMA}new": {}, "password-change": {}}
    events = read(fxa, fxa.sign_event(claims(events=named)))
    assert events.types == ("password-change", "delete-user", "other", "other")
    assert (events.deleted, events.password_changed_ms) == (True, 5)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_named = st.dictionaries(st.sampled_from((PASSWORD, f"{SCHEMA}delete-user", "x")), _json, max_size=3)


@given(
    changes=st.fixed_dictionaries(
        {},
        optional={
            "iss": _json,
            "aud": _json,
            "sub": _json,
            "iat": _json,
            "jti": _json,
            "exp": _json,
            "nbf": _json,
            "events": _json | _named | st.fixed_dictionaries({PASSWORD: st.fixed_dictionaries({"changeTime": _json})}),
        },
    )
)
def test_signed_claims_of_any_kind_are_read_or_refused_by_name(fxa: StandIn, changes: dict[str, Any]) -> None:
    with contextlib.suppress(Refused):
        events = read(fxa, fxa.sign_event(claims(**changes)))
        assert events.uid == UID and set(events.types) <= set(TYPES)
        assert events.password_changed_ms is None or 0 <= events.password_changed_ms <= (NOW + 30) * 1000


@given(token=st.text(max_size=50) | st.from_regex(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", fullmatch=True))
def test_any_text_is_refused_by_name(fxa: StandIn, token: str) -> None:
    with pytest.raises(Refused) as caught:
        security_events.parse(token)
    assert not caught.value.reason.signed


@given(header=_json)
def test_any_header_is_refused_by_name(fxa: StandIn, header: Any) -> None:
    _, payload, signature = fxa.sign_event(claims()).split(".")
    head = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    with pytest.raises(Refused) as caught:
        security_events.parse(f"{head}.{payload}.{signature}")
    assert not caught.value.reason.signed
