"""Error reports to Sentry: the kind of an error and where in the code it happened, and nothing that a client sent.

An error's own words are left out too, as in the log, since libraries put what they could not read into them.
"""

from __future__ import annotations

from typing import Any

import sentry_sdk

from shared.service.ops import VERSION

#: What a report keeps of an event, of an exception in it, and of a frame of its stack. All else is dropped.
_EVENT = ("event_id", "timestamp", "platform", "level", "release", "environment", "server_name", "sdk")
_EXCEPTION = ("type", "module", "mechanism")
_CODE = ("pre_context", "context_line", "post_context")
_FRAME = ("filename", "abs_path", "function", "module", "lineno", "in_app", *_CODE)


def report_errors(dsn: str, service: str) -> None:
    """Begin: what ``sentry_sdk.capture_exception`` is given goes to ``dsn``.

    :param service: the name of the service, in the release.
    """
    sentry_sdk.init(
        dsn,
        release=f"mlpa-{service}@{VERSION}",
        max_request_body_size="never",
        include_local_variables=False,
        default_integrations=False,
        max_breadcrumbs=0,
        before_send=_scrub,
    )


def _scrub(event: Any, _hint: Any) -> Any:
    kept = _only(event, _EVENT)
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
