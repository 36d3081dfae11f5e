"""The errors of the gateway, one class per row of the error table.

Classes that share a code are subclasses of its first one. A code that only scripts decide has its class from its row in
``shared/state/refusals.py``. A shared error is answered and counted as the class that ``kind_of`` finds for it.

``error_response`` renders any ServiceError as a plain answer, ``error_event`` as the last event of a stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Self

import msgspec
from aiohttp import web

from shared.errors import (
    BadRequest,
    DependencyUnavailable,
    Draining,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    ServiceError,
)
from shared.state.refusals import Word

#: ``Retry-After`` while LiteLLM refuses the gateway itself.
KEY_REFUSED_SECONDS = 300
#: ``Retry-After`` while a service type is switched off.
SWITCHED_OFF_SECONDS = 30
#: Why LiteLLM refuses the gateway itself: its key, or the budget of that key.
KEY_REFUSALS = ("key", "budget")
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class GatewayError(ServiceError):
    """An error of the gateway's table.

    ``type`` is OpenAI's family, by default that of the status; ``param`` is the field at fault; ``why`` says more than
    the message, to operators alone. ``should_retry`` False sends ``x-should-retry: false``, which OpenAI's SDKs obey. A
    class states in its head whether the failure is ``ours`` (it counts against availability) and, where that is not its
    code, the metric reason it is ``counted_as``. A class without a status, code, message or side cannot be defined.
    """

    status = 500
    code = "server_error"
    message = "The gateway failed."
    type: ClassVar[str] = "server_error"
    mlpa_code: ClassVar[int | None] = None
    param: str | None = None
    why: str | None = None
    should_retry: bool | None = None
    ours: ClassVar[bool] = True
    counted_as: ClassVar[str] = "server_error"

    def __init_subclass__(cls, *, ours: bool | None = None, counted_as: str | None = None) -> None:
        super().__init_subclass__()
        if cls.__base__ is GatewayError:
            missing = {"status", "code", "message"} - vars(cls).keys()
            if missing or ours is None:
                raise TypeError(f"{cls.__name__} lacks {', '.join(sorted(missing)) or 'its side'}")
        if "status" in vars(cls) and "type" not in vars(cls):
            cls.type = _TYPES.get(cls.status, "server_error" if cls.status >= 500 else "invalid_request_error")
        if ours is not None:
            cls.ours = ours
        if counted_as or "code" in vars(cls):
            cls.counted_as = counted_as or cls.code

    def __init__(
        self, message: str | None = None, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        if param is not None:
            self.param = param


class BudgetExceeded(GatewayError, ours=False):
    """Less is unspent than a minimal request needs. ``retry_after``: seconds to the reset, and the user's delay."""

    status, code, mlpa_code = 429, "budget_exceeded", 1
    message = "The budget of this period is spent."
    type = "insufficient_quota"
    should_retry = False


class RateLimited(GatewayError, ours=False):
    """RPM, TPM or open streams. ``retry_after``: seconds until one more fits; ``reason``: rpm | tpm | streams."""

    status, code, mlpa_code = 429, "rate_limit_exceeded", 2
    message = "Too many requests."

    def __init__(self, message: str | None = None, *, reason: str = "rpm", retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.reason = reason


class RequestTooLarge(GatewayError, ours=False):
    """The body is over the limit, the prompt over the model's context window, or the cost over what a budget has left,
    where an empty prompt would fit.
    """

    status, code, mlpa_code = 413, "request_too_large", 3
    message = "The request is too large."


class UpstreamRateLimited(GatewayError, ours=True):
    """The provider (or LiteLLM on its behalf) refused for its own limits; its Retry-After when it gave one."""

    status, code, mlpa_code = 429, "upstream_rate_limited", 5
    message = "The model's provider is limiting requests."


class InvalidModel(GatewayError, ours=False):
    """The model is unknown, not allowed for the service type, or not a model name.

    ``model``: the one that was asked for, if LiteLLM has it.
    """

    model: str | None = None

    status, code, mlpa_code = 400, "invalid_model", 8
    message = "The model does not exist or may not be used."
    param = "model"

    @classmethod
    def forbidden(cls, model: str, service_type: str) -> Self:
        """A model that LiteLLM has and the service type may not use."""
        error = cls()
        error.model, error.why = model, f"{service_type} may not use this model."
        return error


class ModelNotFound(GatewayError, ours=False, counted_as=InvalidModel.code):
    """There is no such model, or it may not be used. OpenAI's code for it."""

    status, code = 404, "model_not_found"
    message = InvalidModel.message
    param = "model"


class InvalidRequest(GatewayError, ours=False):
    """The body or a field of it is malformed; ``param`` names the field.

    ``model``: the one that the body asks for, if it could be read.
    """

    model: str | None = None

    status, code, mlpa_code = 400, "invalid_request", 9
    message = "The request is malformed."


class Malformed(InvalidRequest):
    """The body is not JSON; a lone surrogate may be the reason."""

    message = "The body is not valid JSON."


class UnknownPath(GatewayError, ours=False, counted_as=InvalidRequest.code):
    """``NotFound`` in this service's table."""

    status, code = NotFound.status, NotFound.code
    message = NotFound.message


class WrongMethod(GatewayError, ours=False, counted_as=InvalidRequest.code):
    """``MethodNotAllowed`` in this service's table."""

    status, code = MethodNotAllowed.status, MethodNotAllowed.code
    message = MethodNotAllowed.message


class InvalidToken(GatewayError, ours=False):
    """The access token is missing, malformed, expired, revoked or not for us.

    Answers with ``WWW-Authenticate`` as RFC 6750 section 3: without an ``error`` when no access token was sent at all.
    """

    status, code = 401, "invalid_token"
    message = "The access token is invalid."
    should_retry = False

    def __init__(self, message: str | None = None, *, missing: bool = False) -> None:
        super().__init__(message)
        error = "" if missing else f', error="invalid_token", error_description="{self.message}"'
        self.headers["WWW-Authenticate"] = f'Bearer realm="mlpa"{error}'


class UserBlocked(GatewayError, ours=False):
    """The user was blocked after the token was issued."""

    status, code = 403, "user_blocked"
    message = "This user is blocked."
    should_retry = False


class MaxUsersReached(GatewayError, ours=False):
    """The service type has no place for a new user. Auth decides that, at the exchange."""

    status, code, mlpa_code = 403, "max_users_reached", 4
    message = "The service type has no room for new users."
    should_retry = False


class Forbidden(GatewayError, ours=False):
    """The credential is good, but not for this request: another service type, or a key beside it is missing."""

    status, code = 403, "forbidden"
    message = "This credential may not be used for this request."
    should_retry = False


class UpstreamError(GatewayError, ours=True):
    """LiteLLM failed or cut the answer short. ``should_retry`` is False when the request was charged."""

    status, code = 502, "upstream_error"
    message = "The model could not answer."


class Unavailable(GatewayError, ours=True):
    """This service cannot take the request now: draining, at its limit of open requests, or LiteLLM is down."""

    status, code = 503, "unavailable"
    message = "The service is unavailable at the moment."

    def __init__(self, message: str | None = None, *, retry_after: float = 1) -> None:
        super().__init__(message, retry_after=retry_after)


class SwitchedOff(Unavailable, ours=False, counted_as="switched_off"):
    """An operator has switched the service type off."""

    message = "The service is switched off at the moment."

    def __init__(self) -> None:
        super().__init__(retry_after=SWITCHED_OFF_SECONDS)


class UpstreamKeyRefused(Unavailable):
    """LiteLLM refuses the gateway's virtual key, or the budget of that key is spent: no user can chat.

    ``reason``: one of KEY_REFUSALS. An operator has to act, so clients are asked to wait longer than for an outage.
    """

    mlpa_code = 10

    def __init__(self, message: str | None = None, *, reason: str = "key") -> None:
        super().__init__(message, retry_after=KEY_REFUSED_SECONDS)
        self.reason = reason


class UpstreamTimeout(GatewayError, ours=True):
    """No data from LiteLLM in the configured time."""

    status, code = 504, "upstream_timeout"
    message = "The model did not answer in time."


_OF_ROW = ("status", "code", "mlpa_code", "message")
#: The classes of the codes that only scripts decide.
_DECIDED = [
    type(row.code.title().replace("_", ""), (GatewayError,), {name: getattr(row, name) for name in _OF_ROW}, ours=False)
    for row in {word.row.code: word.row for word in Word if word.row.status}.values()
]

_SHARED: dict[type[ServiceError], type[GatewayError]] = {
    DependencyUnavailable: Unavailable,
    Draining: Unavailable,
    PayloadTooLarge: RequestTooLarge,
    BadRequest: InvalidRequest,
    NotFound: UnknownPath,
    MethodNotAllowed: WrongMethod,
}


def kind_of(error: ServiceError) -> type[GatewayError]:
    """The class of the gateway's table that an error is answered and counted as: its own, or that of a shared error."""
    if isinstance(error, GatewayError):
        return type(error)
    return next((_SHARED[base] for base in type(error).__mro__ if base in _SHARED), GatewayError)


def kinds(of: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    """Every class of the table."""
    yield of
    for kind in of.__subclasses__():
        yield from kinds(kind)


def codes(status: int) -> str:
    """The codes of a status, for the API's description."""
    return ", ".join(dict.fromkeys(f"`{kind.code}`" for kind in kinds() if kind.status == status))


def envelope(error: ServiceError) -> dict[str, Any]:
    """The OpenAI error object: {"error": {"message", "type", "param", "code", "mlpa_code"}}."""
    kind, param = kind_of(error), error.param if isinstance(error, GatewayError) else None
    return {
        "error": {
            "message": error.message,
            "type": kind.type,
            "param": param,
            "code": kind.code,
            "mlpa_code": kind.mlpa_code,
        }
    }


def error_headers(error: ServiceError) -> dict[str, str]:
    """The headers that an error asks for: its own and ``x-should-retry``."""
    headers = dict(error.headers)
    if isinstance(error, GatewayError) and error.should_retry is not None:
        headers["x-should-retry"] = "true" if error.should_retry else "false"
    return headers


def error_response(error: ServiceError) -> web.Response:
    """The plain HTTP answer for an error."""
    headers = error_headers(error)
    body = msgspec.json.encode(envelope(error))
    return web.Response(status=error.status, body=body, headers=headers, content_type="application/json")


def error_event(error: ServiceError) -> bytes:
    """The event that ends a stream which had begun."""
    return b"data: " + msgspec.json.encode(envelope(error)) + b"\n\n"
