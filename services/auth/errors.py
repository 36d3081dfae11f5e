"""The errors of auth.

They are rendered as {"error", "error_description"} (RFC 6749 section 5.2). A bad credential (400, 401, 403) and a
credential that could not be checked (503) are never mixed up.
"""

from __future__ import annotations

import msgspec
from aiohttp import web

from shared.domain.tokens import BLOCKED
from shared.errors import ServiceError


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of an error answer (RFC 6749 section 5.2)."""

    error: str
    error_description: str


class AuthError(ServiceError):
    """An error that auth answers on purpose."""

    status = 400


class InvalidRequest(AuthError):
    code = "invalid_request"
    message = "The request is malformed."


class InvalidSubjectToken(InvalidRequest):
    message = "The subject_token is invalid, expired or already used."


class UnknownKey(InvalidSubjectToken):
    message = "The key of the subject_token is unknown: attest again, with a new key."


class UnusedKey(InvalidSubjectToken):
    message = "The key of the subject_token was not used for too long: attest again, with a new key."


class InvalidSecurityEvent(InvalidRequest):
    message = "The events of the token are malformed."


class UnsupportedGrantType(AuthError):
    code = "unsupported_grant_type"
    message = "grant_type must be urn:ietf:params:oauth:grant-type:token-exchange."


class InvalidScope(AuthError):
    code = "invalid_scope"
    message = "scope must be exactly one service type that this credential may use."


class InvalidTarget(AuthError):
    code = "invalid_target"
    message = "The only audience is mlpa-gateway; resource is not supported."


class InvalidChallenge(AuthError):
    status, code = 401, "invalid_challenge"
    message = "The challenge is unknown for this key, used or expired. Request a new one."

    def __init__(self) -> None:
        super().__init__(headers={"WWW-Authenticate": 'AppAttest realm="mlpa"'})  # RFC 9110 section 15.5.2 demands one


class IntegrityRejected(AuthError):
    status, code = 401, "integrity_rejected"
    message = "The integrity token was rejected."

    def __init__(self) -> None:
        super().__init__(headers={"WWW-Authenticate": 'PlayIntegrity realm="mlpa"'})


class Unauthorized(AuthError):
    status, code = 401, "unauthorized"
    message = "The admin key is missing."


class UnknownSecurityEvent(AuthError):
    status, code = 401, "invalid_token"
    message = "The token is not a Security Event Token of FxA's for this service."

    def __init__(self, *, missing: bool) -> None:
        error = "" if missing else ', error="invalid_token"'  # RFC 6750 section 3.1
        super().__init__(headers={"WWW-Authenticate": f'Bearer realm="mlpa"{error}'})


class AttestationRejected(AuthError):
    status, code = 403, "attestation_rejected"
    message = "The attestation was rejected."


class AccessDenied(AuthError):
    status, code = 403, "access_denied"
    message = "This user or device may not use the service."


class UserBlocked(AccessDenied):
    message = BLOCKED


class DeviceNotTrusted(AccessDenied):
    message = "This device may not use the service type."


class MaxUsersReached(AuthError):
    status, code = 403, "max_users_reached"
    message = "The service type has no room for new users."


class Forbidden(AuthError):
    status, code = 403, "forbidden"
    message = "This key may view, but not change anything."


class UnknownTier(AuthError):
    status, code = 422, "unknown_service_type"
    message = "There is no such service type."


class SlowDown(AuthError):
    status, code = 429, "slow_down"
    message = "Too many requests. Try again later."

    def __init__(self, retry_after: float) -> None:
        super().__init__(retry_after=retry_after)


class SwitchedOff(ServiceError):
    """An operator has switched the service type off."""

    status, code = 503, "temporarily_unavailable"
    message = "The service is switched off at the moment."

    def __init__(self) -> None:
        super().__init__(retry_after=30)


def render(_request: web.Request | None, error: ServiceError) -> web.Response:
    """Any error as auth's envelope."""
    return web.json_response(
        {"error": error.code, "error_description": error.message}, status=error.status, headers=error.headers
    )
