"""Structured log lines on standard output, one event each; other libraries' lines go through the same renderer.

Never logged: credentials, tokens, messages. A user appears as an HMAC (``UserDigest``).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import sys
from contextvars import ContextVar
from typing import Any

import msgspec
import structlog
from structlog.typing import Processor

#: The id of the request being served, added to every line that is logged while it is.
request_id: ContextVar[str] = ContextVar("request_id")


def configure(*, json: bool, level: str) -> None:
    """Set up logging for this process; call once, at start."""
    shared: list[Processor] = [
        _add_request_id,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: Processor = (
        structlog.processors.JSONRenderer(serializer=_to_json)
        if json
        else structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.WriteLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(logging.getLevelName(level), logging.INFO), force=True)


def _add_request_id(_logger: Any, _method: str, event: Any) -> Any:
    current = request_id.get(None)
    if current is not None and "request_id" not in event:
        event["request_id"] = current
    return event


def _to_json(event: Any, **_options: Any) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()


class UserDigest:
    """A user's name in logs: the same within one secret's life, and worth nothing without it."""

    def __init__(self, secret: str | None) -> None:
        """:param secret: None for one of this process's own, which dies with it."""
        self._key = secret.encode() if secret else secrets.token_bytes(32)

    def __call__(self, user_id: str) -> str:
        return hmac.new(self._key, user_id.encode(), hashlib.sha256).hexdigest()[:16]


def logger(name: str) -> Any:
    """A structlog logger; bound late, so that modules may call this at import."""
    return structlog.get_logger(source=name)
