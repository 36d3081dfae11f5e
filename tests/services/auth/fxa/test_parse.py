"""The form that a token must have before it costs anything."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from services.auth.fxa.errors import InvalidFxAToken
from services.auth.fxa.parse import JwtToken, OpaqueToken, parse
from tests.services.auth.fxa.harness import ISSUER, UID

NOW = 1_800_000_000.0
HEADER = {"alg": "RS256", "typ": "at+JWT", "kid": "20260101-abcdefgh"}
CLAIMS = {
    "iss": ISSUER,
    "sub": UID,
    "client_id": "5882386c6d801776",
    "scope": "profile:uid https://identity.mozilla.com/apps/smartwindow",
    "exp": NOW + 60,
    "iat": NOW - 60,
    "jti": "ab" * 32,
    "aud": "5882386c6d801776",
}


def segment(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def jwt(header: Any = HEADER, claims: Any = CLAIMS, signature: bytes = b"s" * 256) -> str:
    return f"{segment(header)}.{segment(claims)}.{segment(signature)}"


def read(token: str, now: float = NOW) -> OpaqueToken | JwtToken:
    return parse(token, issuer=ISSUER, now=now, skew=30)


def test_a_jwt_of_fxa_is_read_with_its_claims() -> None:
    token = read(jwt())
    assert isinstance(token, JwtToken)
    assert token.kid == HEADER["kid"]
    assert token.claims.scopes == ("profile:uid", "https://identity.mozilla.com/apps/smartwindow")


@pytest.mark.parametrize(
    "typ", ["at+JWT", "at+jwt", "AT+JWT", "application/at+jwt", "application/at+JWT", "Application/At+Jwt"]
)
def test_the_media_type_is_compared_without_case_and_with_or_without_its_prefix(typ: str) -> None:
    assert isinstance(read(jwt({**HEADER, "typ": typ})), JwtToken)


@pytest.mark.parametrize("token", ["0" * 64, "0123456789abcdef" + "0" * 48])
def test_64_hex_digits_are_an_opaque_token(token: str) -> None:
    assert read(token) == OpaqueToken(token)


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a" * 63,
        "a" * 65,
        "g" * 64,
        "A" * 64,
        "a" * 64 + "\n",
        " " + "a" * 64,
        "١" * 64,
        "a.b",
        "a.b.c.d",
        "..",
        jwt() + "\n",
        jwt() + "=",
        jwt().replace(".", ".=", 1),
        jwt() + ".x",
        jwt(signature=b"s" * 2000),
        jwt() + "é",
        "x" * 10_000_000,
    ],
    ids=range(18),
)
def test_anything_else_is_refused(token: str) -> None:
    with pytest.raises(InvalidFxAToken):
        read(token)


def test_the_length_of_a_jwt_is_bounded_exactly() -> None:
    fitting = next(token for size in range(1024, 1700) if len(token := jwt(signature=b"s" * size)) == 2048)
    assert isinstance(read(fitting), JwtToken)
    with pytest.raises(InvalidFxAToken, match="too long"):
        read(fitting + "A")


@pytest.mark.parametrize(
    "change",
    [
        {"alg": "none"},
        {"alg": "HS256"},
        {"alg": "RS512"},
        {"alg": "rs256"},
        {"alg": ["RS256"]},
        {"typ": "JWT"},
        {"typ": "application/jwt"},
        {"typ": "secevent+jwt"},
        {"typ": "text/at+jwt"},
        {"typ": "application/application/at+jwt"},
        {"typ": "at+jwt "},
        {"typ": "at+jwt; charset=utf-8"},
        {"typ": "at+JW\u0166"},
        {"typ": ""},
        {"typ": ["at+JWT"]},
        {"typ": None},
        {"kid": None},
        {"kid": ""},
        {"kid": 1},
        {"kid": "k" * 129},
        {"kid": "a\nb"},
        {"crit": []},
        {"crit": ["exp"]},
        {"crit": None},
        {"b64": False},
        {"jku": "https://evil.test/jwks"},
        {"jwk": {"kty": "RSA"}},
        {"x5u": "https://evil.test/x"},
        {"x5c": []},
    ],
    ids=str,
)
def test_a_header_other_than_fxas_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidFxAToken):
        read(jwt({**HEADER, **change}))


@pytest.mark.parametrize("name", ["alg", "typ", "kid"])
def test_a_header_that_lacks_a_member_is_refused(name: str) -> None:
    with pytest.raises(InvalidFxAToken):
        read(jwt({key: value for key, value in HEADER.items() if key != name}))


@pytest.mark.parametrize(
    "change",
    [
        {"iss": ISSUER + "/"},
        {"iss": "https://accounts.firefox.com.evil.test"},
        {"iss": [ISSUER]},
        {"sub": UID.upper()},
        {"sub": UID[:-1]},
        {"sub": UID + "\n"},
        {"sub": UID + ":ai"},
        {"client_id": ""},
        {"client_id": "*"},
        {"client_id": "a" * 65},
        {"client_id": None},
        {"scope": ["profile"]},
        {"scope": "a\x00b"},
        {"scope": 'a"b'},
        {"exp": str(NOW + 60)},
        {"exp": True},
        {"exp": -1},
        {"exp": 1e300},
        {"iat": None},
        {"nbf": "x"},
        {"fxa-generation": "1"},
        {"fxa-generation": -1},
        {"fxa-generation": 1.5},
    ],
    ids=str,
)
def test_claims_other_than_fxas_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidFxAToken):
        read(jwt(claims={**CLAIMS, **change}))


@pytest.mark.parametrize("name", ["iss", "sub", "client_id", "scope", "exp", "iat"])
def test_a_claim_that_is_missing_is_refused(name: str) -> None:
    with pytest.raises(InvalidFxAToken):
        read(jwt(claims={key: value for key, value in CLAIMS.items() if key != name}))


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({"exp": NOW}, False),
        ({"iat": NOW + 30}, True),
        ({"iat": NOW + 31}, False),
        ({"nbf": NOW + 30}, True),
        ({"nbf": NOW + 31}, False),
        ({"exp": NOW + 0.5}, True),
    ],
    ids=str,
)
def test_clocks_may_be_30_seconds_apart(change: dict[str, float], good: bool) -> None:
    token = jwt(claims={**CLAIMS, **change})
    if good:
        read(token)
    else:
        with pytest.raises(InvalidFxAToken):
            read(token)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b'{"alg":"\xff"}',
        b'{"iss":"\xff"}',
        b'{"alg":"\\ud800"}',
        b"[" * 1400,
        b'{"x":' + b"[" * 1400,
        b'{"alg":' * 190,
        b'{"a":1e999999}',
        b"{} x",
    ],
    ids=range(12),
)
def test_segments_that_are_no_json_object_are_refused(raw: bytes) -> None:
    for token in (jwt(header=raw, claims={}, signature=b"s"), jwt(claims=raw, signature=b"s")):
        with pytest.raises(InvalidFxAToken):
            read(token)


def test_a_deep_member_that_nobody_reads_is_no_crash() -> None:
    deep = json.dumps(HEADER)[:-1].encode() + b',"x":' + b"[" * 550 + b"]" * 550 + b"}"
    with pytest.raises(InvalidFxAToken):
        read(jwt(header=deep, claims={}))


def test_another_spelling_of_a_segment_is_refused() -> None:
    token = jwt(signature=b"s")  # one byte: four bits of the last character mean nothing
    assert isinstance(read(token), JwtToken)
    with pytest.raises(InvalidFxAToken, match="base64url"):
        read(token[:-1] + chr(ord(token[-1]) + 1))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
headers = st.fixed_dictionaries({}, optional={name: json_values | st.just(HEADER.get(name)) for name in [*HEADER, "x"]})
claim_sets = st.fixed_dictionaries({}, optional={name: json_values | st.just(value) for name, value in CLAIMS.items()})


@given(st.text() | st.from_regex(r"[A-Za-z0-9_=-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*"))
def test_no_text_makes_it_fail_otherwise_than_by_refusing(token: str) -> None:
    with contextlib.suppress(InvalidFxAToken):
        read(token)


@given(headers | st.binary(), claim_sets | st.binary())
def test_no_json_makes_it_fail_otherwise_than_by_refusing(header: Any, claims: Any) -> None:
    try:
        token = read(jwt(header, claims))
    except InvalidFxAToken:
        return
    assert isinstance(token, JwtToken)
    assert token.claims.sub == UID
    assert token.claims.exp > NOW - 30
