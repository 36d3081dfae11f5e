"""The provider ``local`` of litellm.yaml: a model that speaks at a human pace. Runs inside LiteLLM's own environment.

It implements LiteLLM's own interface for providers: BerriAI/litellm 1.106.2,
litellm/llms/custom_llm.py (acompletion, astreaming) and litellm/types/utils.py (ModelResponse, GenericStreamingChunk).
It deliberately supports text alone: no tools, one choice, and a word counts as a token.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from itertools import cycle, islice
from typing import Any

from litellm import CustomLLM, ModelResponse  # type: ignore[import-not-found]  # installed in a venv of its own
from litellm.types.utils import GenericStreamingChunk, Usage  # type: ignore[import-not-found]

SECONDS_PER_WORD = 0.06
MOST_WORDS = 2000
TEXT = (
    "This answer was streamed word by word by a real LiteLLM, through a gateway that verified who is asking, "
    "reserved the worst case of what the request may cost, and now relays every event as it comes. "
    "When the last one is out, the true cost replaces the reservation."
)
WORDS = TEXT.split()


class SlowModel(CustomLLM):  # type: ignore[misc]  # an untyped base class
    """A model that says as many words as the last message asks for ("Write 200 words"), else TEXT once."""

    async def acompletion(self, *, model: str, messages: list[Any], optional_params: dict[str, Any], **_: Any) -> Any:
        words, finish_reason = answer(messages, optional_params)
        await asyncio.sleep(SECONDS_PER_WORD * len(words))
        message = {"role": "assistant", "content": "".join(words)}
        choice = {"index": 0, "finish_reason": finish_reason, "message": message}
        return ModelResponse(model=model, choices=[choice], usage=Usage(**usage(messages, words)))

    async def astreaming(
        self, *, messages: list[Any], optional_params: dict[str, Any], **_: Any
    ) -> AsyncIterator[GenericStreamingChunk]:
        words, finish_reason = answer(messages, optional_params)
        for word in words:
            await asyncio.sleep(SECONDS_PER_WORD)
            yield chunk(word)
        yield chunk("", finish_reason=finish_reason, usage=usage(messages, words))


def answer(messages: list[Any], options: dict[str, Any]) -> tuple[list[str], str]:
    """The words of the answer, with the spaces between them, and the finish reason."""
    wanted = re.search(r"\d+", str(messages[-1].get("content", "")))
    count = min(int(wanted[0]) if wanted else len(WORDS), MOST_WORDS)
    limit = options.get("max_completion_tokens") or options.get("max_tokens") or count
    words = list(islice(cycle(WORDS), min(count, limit)))
    spaced = [word if number == 0 else f" {word}" for number, word in enumerate(words)]
    return spaced, "stop" if count <= limit else "length"


def usage(messages: list[Any], words: list[str]) -> dict[str, int]:
    prompt = sum(len(str(message.get("content", "")).split()) for message in messages)
    return {"prompt_tokens": prompt, "completion_tokens": len(words), "total_tokens": prompt + len(words)}


def chunk(text: str, *, finish_reason: str = "", usage: dict[str, int] | None = None) -> GenericStreamingChunk:
    return {
        "text": text,
        "is_finished": bool(finish_reason),
        "finish_reason": finish_reason,
        "index": 0,
        "tool_use": None,
        "usage": usage,
    }


slow = SlowModel()
