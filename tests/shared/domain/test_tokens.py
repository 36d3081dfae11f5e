"""Reading an access token: there is one text for each, and whatever else is refused in one way."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from services.auth.tokens.issuer import Issuer
from services.auth.tokens.key_ring import KeyRing, create_key
from shared.domain import tokens

HEADER = {"alg": "ES256", "typ": "at+jwt", "kid": "k"}
CLAIMS: dict[str, Any] = {
    "iss": "https://auth.example.org",
    "aud": tokens.AUDIENCE,
    "sub": f"{'a' * 32}:ai",
    "client_id": "c",
    "iat": 1,
    "exp": 2,
    "jti": "j",
    "scope": "ai",
    "amr": ["fxa"],
}
SIGNATURE = "A" * 86


def segment(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def token(header: object = HEADER, claims: object = CLAIMS, signature: str = SIGNATURE) -> str:
    """Objects are written as JSON, texts as they are."""
    parts = [segment(part if isinstance(part, str) else json.dumps(part)) for part in (header, claims)]
    return ".".join([*parts, signature])


def test_what_auth_makes_is_read(tmp_path: Path) -> None:
    create_key(tmp_path, activate_at=time.time())
    ring = KeyRing(tmp_path)
    issuer = Issuer(ring, issuer="https://auth.example.org", ttl=300)
    made = issuer.issue(user_id=f"{'a' * 32}:ai", client_id="c", scope="ai", amr="fxa").text
    assert len(made) < tokens.MAX_LENGTH / 2
    assert tokens.header_of(made) == tokens.Header("ES256", tokens.TYPE, ring.signing_key().kid)
    claims = tokens.claims_of(made)
    assert (claims.iss, claims.aud, claims.scope) == ("https://auth.example.org", tokens.AUDIENCE, "ai")
    assert (claims.sub, claims.amr, claims.exp - claims.iat) == (f"{'a' * 32}:ai", ("fxa",), 300)


@pytest.mark.parametrize(
    "header",
    [
        HEADER | {"alg": "none"},
        HEADER | {"alg": "HS256"},
        HEADER | {"typ": "JWT"},
        HEADER | {"crit": []},
        HEADER | {"jwk": {}},
        HEADER | {"kid": 1},
        {"alg": "ES256", "typ": "at+jwt"},
        [],
        '{"alg":"ES256","typ":"at+jwt","kid":"a","kid":"b"}',
        "",
    ],
)
def test_no_other_header_is_read(header: object) -> None:
    with pytest.raises(ValueError):
        tokens.header_of(token(header=header))


@pytest.mark.parametrize(
    "claims",
    [
        *({name: value for name, value in CLAIMS.items() if name != without} for without in CLAIMS),
        CLAIMS | {"exp": "2"},
        CLAIMS | {"exp": 2.5},
        CLAIMS | {"aud": [tokens.AUDIENCE]},
        CLAIMS | {"amr": "fxa"},
        json.dumps(CLAIMS)[:-1] + ',"sub":"other"}',
    ],
)
def test_claims_are_all_there_once_and_of_their_types(claims: object) -> None:
    with pytest.raises(ValueError):
        tokens.claims_of(token(claims=claims))


def test_claims_that_are_not_known_are_not_in_the_way() -> None:
    assert tokens.claims_of(token(claims=CLAIMS | {"new": 1})).jti == "j"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a.b",
        f"{token()}.",
        f" {token()}",
        f"{token()}\n",
        token(signature="A" * 85),
        token(signature="A" * 85 + "B"),  # the same bytes as with A
        token(signature="A" * 86 + "=="),
        token().replace(".", "=.", 1),
        token(claims=CLAIMS | {"sub": "x" * tokens.MAX_LENGTH}),
    ],
)
def test_a_token_has_one_text(text: str) -> None:
    for read in (tokens.header_of, tokens.claims_of):
        with pytest.raises(ValueError):
            read(text)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: f"{segment(raw.hex())}.{raw.hex()}.{SIGNATURE}"))
def test_no_text_makes_reading_fail_in_another_way(text: str) -> None:
    for read in (tokens.header_of, tokens.claims_of):
        with contextlib.suppress(ValueError):
            read(text)
