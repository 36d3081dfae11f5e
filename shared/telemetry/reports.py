"""Error reports to Sentry: the kind of an error and its place in the code, and nothing that a client sent.

As in the log, an error's message is left out too, since libraries quote input in messages.
"""

from __future__ import annotations

from typing import Any

import sentry_sdk

from shared.service.ops import VERSION, version_info
from shared.telemetry import logs

#: The fields that a report keeps of an event, of an exception in it, and of a frame of its stack.
_EVENT = ("event_id", "timestamp", "platform", "level", "release", "environment", "server_name", "sdk")
_EXCEPTION = ("type", "module", "mechanism")
_TAGS = ("loop",)
_CODE = ("pre_context", "context_line", "post_context")
_FRAME = ("filename", "abs_path", "function", "module", "lineno", "in_app", *_CODE)


def report_errors(dsn: str, service: str) -> None:
    """Send the errors given to ``sentry_sdk.capture_exception`` to ``dsn`` from now on.

    :param service: the name of the service, in the release.
    """
    commit = version_info()["commit"]
    sentry_sdk.init(
        dsn,
        release=f"mlpa-{service}@{VERSION}{f'+{commit}' if commit else ''}",
        max_request_body_size="never",
        include_local_variables=False,
        default_integrations=False,
        max_breadcrumbs=0,
        before_send=_scrub,
    )


def _scrub(event: Any, _hint: Any) -> Any:
    kept = _only(event, _EVENT)
    kept["tags"] = _only(dict(event.get("tags") or ()), _TAGS)
    if (request_id := logs.request_id.get(None)) is not None:
        kept["tags"]["request_id"] = request_id
    values = (event.get("exception") or {}).get("values") or ()
    kept["exception"] = {"values": [_exception(value) for value in values]}
    return kept


def _exception(value: Any) -> dict[str, Any]:
    kept = _only(value, _EXCEPTION)
    frames = (value.get("stacktrace") or {}).get("frames") or ()
    kept["stacktrace"] = {"frames": [_only(frame, _FRAME) for frame in frames]}
    return kept


def _only(given: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}
