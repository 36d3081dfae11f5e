"""LiteLLM's side of a complaint: one JSON line per call and try, with the id that the gateway's log has of it.

LiteLLM loads it from beside its configuration (``litellm_settings.callbacks``), here and in production. Its own log has
access lines alone. Nothing of a prompt, an answer or an error's words is written. It also keeps people's ids from the
providers of searches.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from litellm.integrations.custom_logger import CustomLogger  # type: ignore[import-not-found, unused-ignore]


class CallLog(CustomLogger):  # type: ignore[misc, unused-ignore]
    async def async_pre_call_hook(self, user_api_key_dict: Any, cache: Any, data: Any, call_type: str) -> Any:
        """Keep a person's id from the provider of a search, to which LiteLLM would pass it on.

        LiteLLM itself has noted by now whose the request is. Models have ``additional_drop_params`` for this, search
        tools have not.
        """
        if call_type == "asearch":
            data.pop("user", None)
        return data

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        _write("success", kwargs)

    async def async_log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        _write("failure", kwargs)


def _write(outcome: str, call: Any) -> None:
    told = call.get("standard_logging_object") or {}
    error = told.get("error_information") or {}
    headers = (told.get("hidden_params") or {}).get("additional_headers") or {}
    line = {
        "event": "litellm_call",
        "litellm_call_id": call.get("litellm_call_id"),
        "outcome": outcome,
        "model": told.get("model"),
        "deployment": told.get("model_id"),
        "api_base": told.get("api_base"),
        "seconds": told.get("response_time"),
        # both are the provider's: of the answer, and of its own log
        "response_id": told.get("id"),
        "provider_request_id": headers.get("llm_provider-x-request-id"),
        "error": error.get("error_class"),
        "error_code": error.get("error_code"),
    }
    sys.stdout.write(json.dumps(line, default=str) + "\n")
    sys.stdout.flush()


log = CallLog()
