"""The worst case of a request, and its charge. Pure: integers in, integers out, rounded up once."""

from __future__ import annotations

from decimal import Decimal

import msgspec

from services.gateway.budget.models import Ask, Delivery, Usage
from shared.domain.money import ceil_nano

#: Lua's numbers are doubles: whole numbers are exact below this.
EXACT = 2**53
#: The largest charge of one request, a million USD, and the most tokens that it can have used. Larger numbers from
#: upstream are nonsense, and must not overflow a counter.
MOST = 10**15
_MOST_USD = Decimal(10**6)
_MOST_TOKENS = 10**12


class Bounds(msgspec.Struct, frozen=True):
    """The costs between which the script chooses, all exact.

    ``full`` pays for the limit asked for, ``least`` for the smallest grant, ``empty`` for that of one choice without
    any prompt (of an operation without a completion: for a prompt of one token). Between ``least`` and ``full``, the
    script computes ``grant = floor((available * scale - prompt_units) / grant_units)``.
    """

    full: int
    least: int
    empty: int
    least_grant: int
    prompt_units: int
    grant_units: int
    scale: int


def bounds(ask: Ask, max_budget: int) -> Bounds:
    """The bounds of a request under a budget of ``max_budget`` nano-dollars.

    Prices are whole numbers of ``1/scale`` nano-dollars. Where a budget times that scale would not be exact in a
    double, the script gets a coarser scale with prices rounded up, which lowers grants by a token at most.
    """
    model = ask.model
    scale, prompt_price, completion_price = model.scale, model.input_units, model.output_units
    fee = model.request_units
    prompt = ask.prompt_bound * prompt_price + fee
    each = ask.n * completion_price
    least_grant = min(ask.limit, model.min_completion_tokens)
    full = -(-(prompt + ask.limit * each) // scale)
    least = -(-(prompt + least_grant * each) // scale)
    shortest = 0 if ask.limit else min(1, ask.prompt_bound)
    empty = -(-(fee + shortest * prompt_price + least_grant * completion_price) // scale)
    while scale > 1 and max(1, max_budget) * scale >= EXACT:
        scale //= 10
        prompt_price, completion_price, fee = -(-prompt_price // 10), -(-completion_price // 10), -(-fee // 10)
        prompt, each = ask.prompt_bound * prompt_price + fee, ask.n * completion_price
    # costs beyond the budget need not be exact, but Lua must be able to compare them
    beyond = max_budget + 1
    return Bounds(
        min(full, beyond),
        min(least, beyond),
        min(empty, beyond),
        least_grant,
        min(prompt, EXACT - 1),
        min(each, EXACT - 1),
        scale,
    )


class Charge(msgspec.Struct, frozen=True):
    """The charge of a settled request: the ledger's tokens and cost, and the tokens that TPM counts."""

    cost_nano: int
    prompt_tokens: int
    completion_tokens: int
    rate_tokens: int


NOTHING = Charge(0, 0, 0, 0)


def charge(ask: Ask, grant: int, delivery: Delivery) -> Charge:
    """The charge of an admitted request.

    Without usage the bound is charged: the whole prompt, and as many completion tokens as bytes were relayed; all
    of the grant where tokens may have been made that nobody saw (non-stream, reasoning). A whole answer costs what
    its head reports, whether or not it was read.
    """
    if not delivery.sent or delivery.refused:
        return NOTHING
    usage, given = delivery.usage, delivery.response_cost
    reported = None if given is None or not given.is_finite() or given <= 0 else ceil_nano(min(given, _MOST_USD))
    if usage is not None:
        prompt, completion = min(usage.prompt_tokens, _MOST_TOKENS), min(usage.completion_tokens, _MOST_TOKENS)
        cost = _usage_price(ask, usage) if reported is None else reported
        return Charge(cost, prompt, completion, prompt + completion)
    prompt, most = ask.prompt_bound, grant * ask.n
    completion = min(most, delivery.relayed_bytes) if delivery.stream and not ask.model.reasoning else most
    model = ask.model
    units = model.request_units + prompt * model.input_units + completion * model.output_units
    seen = ask.estimated_prompt_tokens + -(-delivery.relayed_bytes // 4)
    cost = _nano(units, model.scale) if reported is None or delivery.stream else reported
    return Charge(cost, prompt, completion, seen)


def _usage_price(ask: Ask, usage: Usage) -> int:
    """Tokens times prices: those that hold for a prompt of this length, cache writes and reasoning apart."""
    model = ask.model
    rate = next(rate for rate in reversed(model.rates) if usage.prompt_tokens > rate.above or not rate.above)
    written = min(usage.cache_write_tokens, usage.prompt_tokens)
    reasoned = min(usage.reasoning_tokens, usage.completion_tokens)
    units = (
        model.request_units
        + (usage.prompt_tokens - written) * rate.input
        + written * rate.cache_write
        + (usage.completion_tokens - reasoned) * rate.output
        + reasoned * rate.reasoning
    )
    return _nano(units, model.scale)


def _nano(units: int, scale: int) -> int:
    return min(MOST, -(-units // scale))
