"""Dialects: what differs between kinds of clients, so that no operation has to know of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from aiohttp import web

from services.gateway.client_keys import CLIENT_KEYS
from services.gateway.errors import InvalidToken, SwitchedOff, error_event, error_response
from services.gateway.tokens.bearer import bearer
from services.gateway.tokens.models import Principal
from shared.errors import ServiceError
from shared.service.web import SERVICE_TYPE, USER_ID


@dataclass(frozen=True, slots=True)
class Dialect:
    """The treatment of one kind of client: its recognition, its authentication, and the form of its answers."""

    #: Whether a request comes from such a client.
    speaks: Callable[[web.Request], bool]
    #: Returns the bearer of the request's credential; raises a GatewayError or DependencyUnavailable.
    authenticate: Callable[[web.Request], Awaitable[Principal]]
    #: The plain answer for an error.
    error_response: Callable[[ServiceError], web.Response]
    #: The event that ends a stream which had begun.
    error_event: Callable[[ServiceError], bytes]
    #: Rewrites whole events of a stream.
    events: Callable[[bytes], bytes]
    #: The bytes to send while a stream is silent; empty for none.
    comment: bytes
    #: Whether a block is reported before faults of the request, and among these a wrong model first.
    in_order: bool = False


def _unchanged(events: bytes) -> bytes:
    return events


OPENAI = Dialect(
    speaks=lambda _request: True,
    authenticate=bearer,
    error_response=error_response,
    error_event=error_event,
    events=_unchanged,
    comment=b": keep-alive\n\n",
)

#: The dialects of an app. The first that speaks for a request is the request's; the last speaks for all.
DIALECTS = web.AppKey("dialects", Sequence[Dialect])


def of(request: web.Request | None) -> Dialect:
    """The dialect of a request; OpenAI's for bytes that are not a request."""
    if request is None:
        return OPENAI
    return next(dialect for dialect in request.app[DIALECTS] if dialect.speaks(request))


async def authenticate(request: web.Request, *, checks_body: bool = False) -> Principal:
    """Authenticate a request, and note its user for the metrics and the log line.

    :param checks_body: the caller compares the body with the principal's ``body_sha256``.
    :raises InvalidToken: the credential is missing or not good.
    :raises Forbidden: the service type needs a client key beside it.
    :raises DependencyUnavailable: it could not be checked.
    :raises SwitchedOff: the service type is.
    """
    principal = await of(request).authenticate(request)
    if principal.body_sha256 is not None and not checks_body:
        raise InvalidToken("The access token is for one request alone.")
    if principal.service_type.client_key is not None:
        request.app[CLIENT_KEYS].check(request, principal.service_type.client_key)
    request[SERVICE_TYPE] = principal.service_type.name
    request[USER_ID] = principal.user_id
    if not principal.service_type.enabled:
        raise SwitchedOff
    return principal
