"""Every form that POST /token can be sent, and its documented error."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from services.cli.client import ACCESS_TOKEN, ASSERTION, GRANT_TYPE
from tests.services.auth.conftest import Auth

FORM_TYPE = {"Content-Type": "application/x-www-form-urlencoded"}


def form(**changes: str | None) -> list[tuple[str, str]]:
    given: dict[str, str | None] = {
        "grant_type": GRANT_TYPE,
        "subject_token": "a" * 64,
        "subject_token_type": ACCESS_TOKEN,
        "scope": "ai",
        **changes,
    }
    return [(name, value) for name, value in given.items() if value is not None]


CASES: list[tuple[str, Any, str]] = [
    ("no grant_type", form(grant_type=None), "invalid_request"),
    ("empty grant_type", form(grant_type=""), "invalid_request"),
    ("another grant_type", form(grant_type="authorization_code"), "unsupported_grant_type"),
    ("no subject_token", form(subject_token=None), "invalid_request"),
    ("empty subject_token", form(subject_token=""), "invalid_request"),
    ("no subject_token_type", form(subject_token_type=None), "invalid_request"),
    ("unknown subject_token_type", form(subject_token_type="urn:x"), "invalid_request"),
    ("no scope", form(scope=None), "invalid_scope"),
    ("empty scope", form(scope=""), "invalid_scope"),
    ("unknown scope", form(scope="nope"), "invalid_scope"),
    ("two scopes", form(scope="ai s2s"), "invalid_scope"),
    ("scope with a space before", form(scope=" ai"), "invalid_scope"),
    ("another audience", form(audience="other"), "invalid_target"),
    ("one good and one bad audience", [*form(audience="mlpa-gateway"), ("audience", "x")], "invalid_target"),
    ("a resource", form(resource="https://x"), "invalid_target"),
    ("repeated scope", [*form(), ("scope", "ai")], "invalid_request"),
    ("repeated unknown parameter", [*form(), ("x", "1"), ("x", "2")], "invalid_request"),
    ("an actor_token", form(actor_token="x"), "invalid_request"),
    ("another requested_token_type", form(requested_token_type="urn:x"), "invalid_request"),
    ("junk as FxA token", form(subject_token="junk"), "invalid_request"),
    ("junk as assertion", form(subject_token="junk", subject_token_type=ASSERTION), "invalid_request"),
]


async def test_each_malformed_form_gets_its_error(auth: Auth) -> None:
    for what, pairs, error in CASES:
        status, body, headers = await auth.ask("POST", "/token", data=urlencode(pairs), headers=FORM_TYPE)
        assert (status, body["error"]) == (400, error), what
        assert set(body) == {"error", "error_description"}, what
        assert headers["Cache-Control"] == "no-store", what


async def test_what_may_stand_beside_is_accepted(auth: Auth) -> None:
    for extra in [
        [("audience", "mlpa-gateway")],
        [("audience", "mlpa-gateway")] * 2,
        [("unknown", "x")],
        [("resource", "")],
        [("requested_token_type", ACCESS_TOKEN)],
        [("actor_token", "")],
    ]:
        pairs = [*form(subject_token=auth.fxa_token()), *extra]
        status, body, _ = await auth.ask("POST", "/token", data=urlencode(pairs), headers=FORM_TYPE)
        assert status == 200, body


async def test_the_type_of_the_body_is_compared_without_case(auth: Auth) -> None:
    """RFC 9110 section 8.3.1."""
    headers = {"Content-Type": "Application/X-WWW-Form-URLencoded; charset=UTF-8"}
    data = urlencode(form(subject_token=auth.fxa_token()))
    assert (await auth.ask("POST", "/token", data=data, headers=headers))[0] == 200


async def test_what_is_no_form_is_an_invalid_request(auth: Auth) -> None:
    for data, content_type in [
        (b'{"grant_type":"x"}', "application/json"),
        (urlencode(form()).encode(), "text/plain"),
        (b"grant_type=%ff%fe", "application/x-www-form-urlencoded"),
        (b"\xff\xfe", "application/x-www-form-urlencoded"),
        (b"", "application/x-www-form-urlencoded"),
        (b"&".join(b"a%d=1" % index for index in range(500)), "application/x-www-form-urlencoded"),
        (b"no equals sign", "application/x-www-form-urlencoded"),
    ]:
        status, body, _ = await auth.ask("POST", "/token", data=data, headers={"Content-Type": content_type})
        assert (status, body["error"]) == (400, "invalid_request"), data


async def test_a_body_over_the_limit_is_413_with_and_without_its_length(auth: Auth) -> None:
    async def pieces() -> Any:
        for _ in range(70):
            yield b"x" * 1024

    for chunked in [False, True]:
        data: Any = pieces() if chunked else b"x" * 70 * 1024
        status, body, _ = await auth.ask("POST", "/token", data=data, headers=FORM_TYPE)
        assert (status, body["error"]) == (413, "request_too_large"), chunked
