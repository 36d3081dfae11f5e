"""The error for the client, from LiteLLM's: by status, ``type``, ``code`` and headers, for every version since 1.84.

A message is read only where LiteLLM distinguishes two cases in no other way, and then only for the name that LiteLLM
itself puts there. Upstream's text never reaches the client: it may name hosts, keys and deployments.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from services.gateway.errors import (
    BudgetExceeded,
    GatewayError,
    InvalidModel,
    InvalidRequest,
    RateLimited,
    RequestTooLarge,
    UpstreamError,
    UpstreamKeyRefused,
    UpstreamRateLimited,
    UpstreamTimeout,
)

#: Largest part of an error body that is read.
MAX_ERROR_BODY = 64 * 1024

_CONTEXT_WINDOW = re.compile(r"\bContextWindowExceededError\b")
_UNKNOWN_MODEL = re.compile(r"\bInvalid model name passed in\b")
_PARAM = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")

#: Types and codes by which LiteLLM refuses the gateway's own key, whatever the status (``ProxyErrorTypes`` in
#: litellm/proxy/_types.py; ``no_db_connection`` is a key that it can't look up).
_KEY_REFUSED = frozenset(
    {
        "auth_error",
        "token_not_found_in_db",
        "no_db_connection",
        "expired_key",
        *(f"{whose}_model_access_denied" for whose in ("key", "team", "user", "project", "org", "agent")),
    }
)
#: The code with which a provider refuses LiteLLM's key.
_PROVIDER_KEY = "invalid_api_key"
#: The owner of a spent budget, which only the message names (``BudgetExceededError`` in
#: litellm/proxy/auth/auth_checks.py and litellm/proxy/spend_tracking/budget_reservation.py).
_USER_SPENT = re.compile(r"\bEnd ?User=")
_KEY_SPENT = re.compile(
    r"\b(?:Key|Team|TeamMember|User|Organization|Project|Tag|Model access group)=|\bKey over\b|exceeded! Current cost"
)

#: Types and codes that may be logged: anything else could be a client's or a provider's own text.
KNOWN_WORDS = _KEY_REFUSED | {_PROVIDER_KEY, "budget_exceeded", "throttling_error", "invalid_request_error", "None"}


@dataclass(frozen=True, slots=True)
class UpstreamFailure:
    """An error object with its status; within a stream the status is the error's code."""

    status: int
    type: str
    code: str
    message: str
    param: str | None


def read_failure(status: int, body: bytes) -> UpstreamFailure:
    """The error object of an answer; FastAPI's ``{"detail": ...}`` and plain text are accepted too."""
    try:
        given = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        given = None
    error = given.get("error", given.get("detail")) if isinstance(given, dict) else None
    return read_error(status, error)


def read_event_failure(error: Any) -> UpstreamFailure:
    """The error object of an event; its ``code`` is the status that it would have been."""
    failure = read_error(500, error)
    if failure.code.isdecimal() and 400 <= int(failure.code[:4]) <= 599:
        return read_error(int(failure.code), error)
    return failure


def read_error(status: int, error: Any) -> UpstreamFailure:
    if not isinstance(error, dict):
        return UpstreamFailure(status, "", "", error if isinstance(error, str) else "", None)
    inner = error.get("error")
    if isinstance(inner, dict) and "type" not in error:
        error = inner  # HTTPException(detail={"error": {...}})
    param = error.get("param")
    return UpstreamFailure(
        status,
        _text(error.get("type")),
        _text(error.get("code")),
        _text(error.get("message", inner)),
        param if isinstance(param, str) and _PARAM.fullmatch(param) and param != "None" else None,
    )


def classify(failure: UpstreamFailure, headers: Mapping[str, str], *, seconds_to_reset: float) -> GatewayError:
    """The error that the client gets.

    :param seconds_to_reset: until the user should come back with a new budget.
    """
    status, kind, code = failure.status, failure.type, failure.code
    if "budget_exceeded" in (kind, code):
        if not _USER_SPENT.search(failure.message) and _KEY_SPENT.search(failure.message):
            return UpstreamKeyRefused(reason="budget")
        return BudgetExceeded(retry_after=seconds_to_reset)
    if kind in _KEY_REFUSED or code in _KEY_REFUSED:
        return UpstreamKeyRefused(reason="key")
    if code == _PROVIDER_KEY or status in (401, 403, 404):
        return UpstreamError()
    if status == 429:
        return _limited(failure, headers)
    if status in (408, 504):
        return UpstreamTimeout()
    if status == 413 or code == "context_length_exceeded" or _CONTEXT_WINDOW.search(failure.message):
        return RequestTooLarge("The prompt is larger than the model's context window.")
    if status in (400, 422):
        if code == "model_not_found" or _UNKNOWN_MODEL.search(failure.message):
            return InvalidModel()
        return InvalidRequest("The model's provider refused the request.", param=failure.param)
    return UpstreamError(retry_after=_wait(headers) if status == 503 else None)


def _limited(failure: UpstreamFailure, headers: Mapping[str, str]) -> GatewayError:
    """The error for a 429. LiteLLM's own limit names itself (``rate_limit_type``); others are the provider's or a
    deployment's.
    """
    wait = _wait(headers)
    if headers.get("rate_limit_type") and _seconds(headers.get("llm_provider-retry-after")) is None:
        return RateLimited(reason="upstream", retry_after=wait if wait is not None else 1)
    return UpstreamRateLimited(retry_after=wait)


def _wait(headers: Mapping[str, str]) -> float | None:
    """The seconds to wait, as named by the provider or otherwise by LiteLLM."""
    provider = _seconds(headers.get("llm_provider-retry-after"))
    return provider if provider is not None else _seconds(headers.get("retry-after"))


def _seconds(text: str | None) -> float | None:
    """A Retry-After (RFC 9110 section 10.2.3: seconds, or a date) in seconds, at most an hour; None if malformed."""
    try:
        seconds = float(text or "")
    except ValueError:
        try:
            seconds = max(0.0, parsedate_to_datetime(text or "").timestamp() - time.time())
        except (ValueError, OverflowError):
            return None
    return min(seconds, 3600.0) if seconds >= 0 else None


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""
