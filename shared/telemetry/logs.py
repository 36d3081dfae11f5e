"""Structured log lines on standard output, one event each; other libraries' lines go through the same renderer.

A line that can't be written is lost and counted, and holds up nothing (``Lines``).

Never logged: credentials, tokens, messages. A user appears as an HMAC (``UserDigest``). An error appears by its kind
and stack without its message, since libraries quote input in messages.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import secrets
import socket
import sys
import time
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from typing import Any, Literal, TextIO, cast

import msgspec
import sentry_sdk
import structlog
from structlog.typing import Processor

from shared.telemetry import lines

#: The id of the current request, added to every line that is logged during it.
request_id: ContextVar[str] = ContextVar("request_id")


Format = Literal["text", "json", "mozlog", "gcp"]

#: Levels as numbers of syslog, which mozlog has (mozilla-services/python-dockerflow, src/dockerflow/logging.py).
_SYSLOG = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}


def configure(*, form: Format, level: str) -> None:
    """Set up logging for this process, including uncaught errors; call once, at start."""
    output = cast(TextIO, lines.stdout)
    _shaped.clear()
    shared: list[Processor] = [
        _add_request_id,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.ExceptionRenderer(_stack),
    ]
    if form == "text":
        renderers: list[Processor] = [structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())]
    else:
        shapes: dict[str, list[Processor]] = {"json": [], "mozlog": [_mozlog(socket.gethostname())], "gcp": [_gcp]}
        renderers = [*shapes[form], structlog.processors.JSONRenderer(serializer=_to_json)]
        if logging.getLevelName(level) <= logging.INFO:
            _shaped.extend(shapes[form] or [_as_it_is])
    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.WriteLoggerFactory(output),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(logging.getLevelName(level), logging.INFO), force=True)
    sys.excepthook = _uncaught


#: The shape of a form that machines read, while lines of level info are written in one.
_shaped: list[Processor] = []


class Frequent:
    """The logger of one event at level info that comes with every request.

    In the forms that machines read it makes its line at once: structlog's chain takes twice as long for the same.
    """

    def __init__(self, source: str, event: str) -> None:
        self._named = {"source": source, "event": event}
        self._log = logger(source)

    def __call__(self, fields: dict[str, Any]) -> None:
        if not _shaped:
            self._log.info(self._named["event"], **fields)
            return
        timestamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        line = {**self._named, **fields, "level": "info", "timestamp": timestamp}
        lines.stdout.write(_to_json(_shaped[0](None, "info", _add_request_id(None, "info", line))) + "\n")


def _stack(exc_info: tuple[type[BaseException], BaseException, Any]) -> str:
    """The traceback of an error and its causes as Python prints it, the first cause first, without their messages."""
    chain: list[BaseException] = []
    behind: BaseException | None = exc_info[1]
    while behind is not None and behind not in chain:
        chain.append(behind)
        behind = behind.__cause__ or (None if behind.__suppress_context__ else behind.__context__)
    return "\nwhich led to\n\n".join(map(_one_stack, reversed(chain)))


def _one_stack(error: BaseException) -> str:
    # the operating system's words about a connection or a file quote no input, and say what to repair
    words = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
    kind = f"{type(error).__module__}.{type(error).__qualname__}{words}"
    return "".join((*traceback.format_tb(error.__traceback__), kind))


def _add_request_id(_logger: Any, _method: str, event: Any) -> Any:
    current = request_id.get(None)
    if current is not None and "request_id" not in event:
        event["request_id"] = current
    return event


def _mozlog(host: str) -> Processor:
    """MozLog 2.0 (https://wiki.mozilla.org/Firefox/Services/Logging): the event is the type, all else are fields."""
    process = os.getpid()

    def shaped(_logger: Any, _method: str, event: Any) -> Any:
        del event["timestamp"]
        return {
            "Timestamp": time.time_ns(),
            "Type": event.pop("event"),
            "Logger": "mlpa",
            "Hostname": host,
            "EnvVersion": "2.0",
            "Severity": _SYSLOG.get(event.pop("level"), 7),
            "Pid": process,
            "Fields": event,
        }

    return shaped


def _gcp(_logger: Any, _method: str, event: Any) -> Any:
    """Google's Cloud Logging takes these three for its own (https://cloud.google.com/logging/docs/structured-logging)."""
    event["severity"] = event.pop("level").upper()
    event["message"] = event.pop("event")
    event["time"] = event.pop("timestamp")
    return event


def _as_it_is(_logger: Any, _method: str, event: Any) -> Any:
    return event


def _to_json(event: Any, **_options: Any) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()


class UserDigest:
    """The digest of a user for logs: constant as long as the secret is, and useless without it."""

    def __init__(self, secret: str | None) -> None:
        """:param secret: None for one of this process's own, which dies with it."""
        self._key = secret.encode() if secret else secrets.token_bytes(32)
        self._kept = lru_cache(maxsize=10_000)(self._digest)

    def __call__(self, user_id: str) -> str:
        return self._kept(user_id)

    def _digest(self, user_id: str) -> str:
        return hmac.digest(self._key, user_id.encode(), "sha256").hex()[:16]


def logger(name: str) -> Any:
    """A structlog logger; bound late, so that modules may call this at import."""
    return structlog.get_logger(source=name)


_log = logger("process")


def _uncaught(_kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
    """Replaces Python's own hook, which writes an error's message."""
    _log.critical("uncaught_error", exc_info=error)


#: Beginnings of the messages that asyncio, uvloop and aiohttp give the loop's handler. Only these are logged: further
#: words may be a server's, which aiopg passes on.
_LOOP_MESSAGES = (
    "Task exception was never retrieved",
    "Future exception was never retrieved",
    "Task was destroyed but it is pending!",
    "Exception in callback",
    "Exception in default exception handler",
    "Unhandled exception in client_connected_cb",
    "Unhandled error in exception handler",
    "Unclosed client session",
    "Unclosed connection",
    "Unclosed connector",
    "Unclosed response",
    "Fatal error on transport",
    "Fatal read error",
    "Fatal write error",
    "Fatal error: protocol",
    "SSL handshake failed",
    "SSL error",
)


def loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The event loop's exception handler. The default one writes an error's message and a callback's arguments."""
    said = context.get("message") or ""
    said = next((known for known in _LOOP_MESSAGES if said.startswith(known)), "other")
    error = context.get("exception")
    _log.error("event_loop_error", said=said, exc_info=error)
    if error is not None:
        sentry_sdk.capture_exception(error)
