"""Errors that a client may see.

Each class owns its status, its stable code and a public default message; one middleware per service
renders them in that service's envelope. Messages never hold a credential or a client's input.
"""

from __future__ import annotations

import math


class ServiceError(Exception):
    """An answer other than success. ``message`` is public."""

    status: int = 500
    code: str = "server_error"
    message: str = "The service failed."

    def __init__(
        self, message: str | None = None, *, retry_after: float | None = None, headers: dict[str, str] | None = None
    ) -> None:
        """
        :param retry_after: seconds, rounded up to whole ones in the ``Retry-After`` header.
        :param headers: more response headers.
        """
        if message is not None:
            self.message = message
        self.retry_after = retry_after
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers.setdefault("Retry-After", str(max(1, math.ceil(retry_after))))
        super().__init__(self.message)


class DependencyUnavailable(ServiceError):
    """A dependency of the decision could not be asked, which says nothing about the credential."""

    status, code = 503, "temporarily_unavailable"

    def __init__(self, dependency: str, *, retry_after: float = 1, reason: str = "unavailable") -> None:
        """
        :param dependency: ``redis``, ``postgres``, ``fxa``, ``play``, ``litellm``, ``auth`` or ``signing_key``; a
            metric label.
        :param reason: for the log and readiness; never shown to clients.
        """
        self.dependency, self.reason = dependency, reason
        super().__init__("A dependency is unavailable. Try again soon.", retry_after=retry_after)


class Draining(ServiceError):
    """This process is ending and takes no more requests; another one does."""

    status, code = 503, "temporarily_unavailable"
    message = "The service is restarting. Try again."

    def __init__(self) -> None:
        super().__init__(retry_after=1)


class BadRequest(ServiceError):
    status, code = 400, "invalid_request"
    message = "The request is malformed."


class HeadTooLate(BadRequest):
    """The head of a request was not complete in time."""

    status = 408
    message = "The head of the request did not arrive in time."


class EncodedBody(BadRequest):
    """The body is compressed. Nothing is inflated: a few kilobytes would cost seconds."""

    status = 415
    message = "The body must not be compressed: the only Content-Encoding is identity."

    def __init__(self) -> None:
        super().__init__(headers={"Accept-Encoding": "identity"})  # RFC 9110 section 15.5.16


class HeadTooLarge(BadRequest):
    """The request line and the header fields together, or one of them, are over the limit."""

    status = 431
    message = "The head of the request is too large."


class NotFound(ServiceError):
    status, code = 404, "not_found"
    message = "There is nothing at this path."


class MethodNotAllowed(ServiceError):
    status, code = 405, "method_not_allowed"
    message = "The path does not take this method."


class PayloadTooLarge(ServiceError):
    status, code = 413, "request_too_large"
    message = "The request body is too large."
