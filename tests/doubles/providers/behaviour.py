"""What every provider's double says, whatever its wire format: it depends on the request alone.

- Tools on offer: three calls one after the other (``CALLS``), then ``ANSWER``.
- A JSON schema asked for: ``STRUCTURED``.
- Reasoning asked for: ``REASONING`` before any of these.
- Else ``ANSWER``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

ANSWER = "It rains in Oslo, Lima is dry."
REASONING = "The user wants weather. I have a tool for that."
STRUCTURED = json.dumps({"city": "Oslo", "celsius": -3})
#: The arguments of the calls, as the model writes them: the odd spacing is part of what has to come back unchanged.
CALLS = ('{"city": "Oslo"}', "{}", '{"city":"Lima","days":[1, 2]}')
PROMPT_TOKENS, COMPLETION_TOKENS, REASONING_TOKENS = 21, 17, 5


@dataclass(frozen=True, slots=True)
class Turn:
    """What the model says next. ``call`` is the number of a call in ``CALLS``."""

    text: str | None
    call: int | None = None
    reasoning: str | None = None

    @property
    def completion_tokens(self) -> int:
        return COMPLETION_TOKENS + (REASONING_TOKENS if self.reasoning else 0)


def next_turn(*, tools: bool, results: int, schema: bool, reasoning: bool) -> Turn:
    """:param results: how many results of tools the conversation has."""
    thought = REASONING if reasoning else None
    if tools and results < len(CALLS):
        return Turn(None, results, thought)
    return Turn(STRUCTURED if schema else ANSWER, None, thought)


def pieces(text: str, size: int = 7) -> list[str]:
    """The text as a stream cuts it."""
    return [text[start : start + size] for start in range(0, len(text), size)] or [""]
