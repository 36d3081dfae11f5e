"""Errors on the wire."""

from __future__ import annotations

import pytest

from services.gateway.errors import InvalidToken, envelope, error_headers
from shared.errors import BadRequest, NotFound, ServiceError


@pytest.mark.parametrize(
    ("error", "code", "mlpa_code"), [(BadRequest(), "invalid_request", 9), (NotFound(), None, None)]
)
def test_refusals_of_the_frame_have_the_codes_of_the_table(
    error: ServiceError, code: str | None, mlpa_code: int | None
) -> None:
    told = envelope(error)["error"]
    assert told["mlpa_code"] == mlpa_code
    assert code is None or told["code"] == code


@pytest.mark.parametrize(
    ("error", "challenge"),
    [
        (InvalidToken(missing=True), 'Bearer realm="mlpa"'),
        (
            InvalidToken(),
            'Bearer realm="mlpa", error="invalid_token", error_description="The access token is invalid."',
        ),
    ],
)
def test_a_challenge_has_a_parameter_and_names_no_error_where_no_token_was(error: InvalidToken, challenge: str) -> None:
    """RFC 6750 section 3."""
    assert error_headers(error)["WWW-Authenticate"] == challenge
