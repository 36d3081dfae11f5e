"""The meaning of LiteLLM's price fields for chat and embeddings. Pure: one entry of ``/model/info`` in, prices out.

A field's name is a base (``input_cost_per_token``) and any of: a threshold of prompt tokens
(``_above_200k_tokens``), a cache's life time (``_above_1hr``), a service tier (``_priority``). Every name with
``cost``, ``pric`` or ``multiplier`` in it must be known here, or the model is refused: the first sign of a new kind of
price must not be the bill.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Generic, NamedTuple, TypeVar

N = TypeVar("N")
_ZERO = Decimal(0)
_READ, _WRITE, _REASONING = (
    "cache_read_input_token_cost",
    "cache_creation_input_token_cost",
    "output_cost_per_reasoning_token",
)
_IN, _OUT = "input_cost_per_token", "output_cost_per_token"
_INPUT_SIDE = frozenset(
    (
        _IN,
        _READ,
        _WRITE,
        "input_cost_per_token_cache_hit",
        "input_cost_per_image_token",
        "cache_read_input_image_token_cost",
        "explicit_cache_read_input_token_cost",
        "citation_cost_per_token",
    )
)
_OUTPUT_SIDE = frozenset((_OUT, _REASONING, "output_cost_per_image_token"))
_PER_REQUEST = frozenset(("input_cost_per_request", "input_cost_per_query"))
#: Tables of token prices: by prompt length, and by time of day.
_TABLES = ("tiered_pricing", "off_peak_pricing")
_SEARCH = "search_context_cost_per_query"
#: Not a price, but the names of the fields that a deployment sets itself.
_OVERRIDES = "pricing_overrides"
#: Known, and never part of a chat completion that the gateway lets through: other media, other units, other endpoints.
_NEVER = re.compile(
    r".*(audio|video|_per_second|_per_character|_per_pixel|_per_image|_per_page|_per_credit|_per_session|_per_unit"
    r"|_per_text_message|_dbu_|_per_1k_|_per_gb_per_day|google_maps_grounding)"
)
_THRESHOLD = re.compile(r"_above_(\d+)(k?)_tokens(?=_|$)")
_SERVICE_TIER = re.compile(r"_(priority|flex|balanced|ultrafast)(?=_|$)")
_OTHER_ENDPOINT = re.compile(r"_(batches|decisions)$")
_PRICE_LIKE = re.compile(r"cost|pric|multiplier")


class Unpriced(Exception):
    """The model must not be served, since its price is missing or not understood. The message names the field."""


class Rate(NamedTuple, Generic[N]):
    """The prices of a token in a request with more than ``above`` prompt tokens."""

    above: int
    input: N
    output: N
    cache_write: N
    reasoning: N


@dataclass(frozen=True, slots=True)
class Prices:
    """The dearest prices that can apply, USD per token (``request``: USD), and ``rates`` by the prompt's length."""

    input: Decimal
    output: Decimal
    request: Decimal
    rates: tuple[Rate[Decimal], ...]


def dearest(deployments: Sequence[Prices]) -> Prices:
    """Prices that pay for any of the deployments: the dearest of each field, for each length of the prompt."""
    every = [prices.rates for prices in deployments]
    rates = []
    for above in sorted({rate.above for rates in every for rate in rates}):
        apply = [max((rate for rate in rates if rate.above <= above), key=lambda rate: rate.above) for rates in every]
        rates.append(Rate(above, *map(max, zip(*(rate[1:] for rate in apply), strict=True))))
    return Prices(
        max(prices.input for prices in deployments),
        max(prices.output for prices in deployments),
        max(prices.request for prices in deployments),
        tuple(rates),
    )


def flat(input_price: Decimal, output_price: Decimal) -> Prices:
    """Two prices and nothing else."""
    return Prices(input_price, output_price, _ZERO, (Rate(0, input_price, output_price, input_price, output_price),))


def per_request(fee: Decimal) -> Prices:
    """A fee for each request, in USD, and nothing for tokens."""
    return Prices(_ZERO, _ZERO, fee, (Rate(0, _ZERO, _ZERO, _ZERO, _ZERO),))


@dataclass(frozen=True, slots=True)
class _Field:
    base: str
    above: int
    price: Decimal


def part(entry: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """``model_info`` or ``litellm_params`` of an entry, empty where it is missing.

    :raises Unpriced: it isn't an object.
    """
    value = entry.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise Unpriced(f"{name} is not an object")
    return value


def makes_embeddings(entry: Mapping[str, Any]) -> bool:
    """Whether a deployment makes embeddings, which have no output that is paid by tokens.

    :raises Unpriced: ``model_info`` isn't an object.
    """
    return part(entry, "model_info").get("mode") == "embedding"


def read(entry: Mapping[str, Any]) -> Prices:
    """The prices of one entry (``model_info`` and ``litellm_params``) of ``/model/info``.

    LiteLLM fills in 0 where it knows no price, so a 0 counts only if the operator wrote it into ``litellm_params``.

    :raises Unpriced: a price is missing or not understood.
    """
    info, params = part(entry, "model_info"), part(entry, "litellm_params")
    fields = [*_fields(info, params), *_fields(params, params)]
    inputs = [field.price for field in fields if field.base in _INPUT_SIDE]
    outputs = [field.price for field in fields if field.base in _OUTPUT_SIDE]
    needed = ((_IN, inputs),) if makes_embeddings(entry) else ((_IN, inputs), (_OUT, outputs))
    for base, prices in needed:
        if not any(prices) and params.get(base) is None:
            raise Unpriced(f"no {base}")
    uplift = max(
        [Decimal(1), *(_decimal(name, value) for name, value in info.items() if "multiplier" in name and value)]
    )
    request = sum((field.price for field in fields if field.base in _PER_REQUEST), _ZERO) + _search_fee(info)
    rates = tuple(_rates(fields))
    return Prices(
        max([*inputs, *(rate.input for rate in rates)]) * uplift,
        max([*outputs, *(rate.output for rate in rates)]) * uplift,
        request * uplift,
        rates,
    )


def _fields(source: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[_Field]:
    """The fields of a mapping that can apply.

    :raises Unpriced: a field is not known, or not a number.
    """
    other_tiers = params.get("service_tier") not in (None, "default", "standard")
    for name, value in source.items():
        if value is None or not _PRICE_LIKE.search(name) or "multiplier" in name or name in (_SEARCH, _OVERRIDES):
            continue
        if name in _TABLES:
            yield from _table(name, value)
            continue
        base = _THRESHOLD.sub("", name)
        tier, endpoint = _SERVICE_TIER.search(base), _OTHER_ENDPOINT.search(base)
        base = _OTHER_ENDPOINT.sub("", _SERVICE_TIER.sub("", base)).replace("_above_1hr", "")
        if base in _INPUT_SIDE or base in _OUTPUT_SIDE or base in _PER_REQUEST:
            if endpoint is None and (tier is None or other_tiers):
                yield _Field(base, _threshold(name), _decimal(name, value))
        elif not _NEVER.match(name):
            raise Unpriced(f"unknown price field {name}")


def _table(name: str, value: Any) -> Iterator[_Field]:
    """``tiered_pricing`` is a list of rows with a ``range`` of prompt tokens, ``off_peak_pricing`` one such row."""
    for row in value if isinstance(value, list) else [value]:
        if not isinstance(row, Mapping):
            raise Unpriced(f"{name} is not a table")
        above = _lower_end(name, row.get("range"))
        for field in _fields({key: item for key, item in row.items() if key not in _TABLES}, {}):
            yield _Field(field.base, max(above, field.above), field.price)


def _lower_end(name: str, tokens: Any) -> int:
    """The threshold of a row of a table: the first of two numbers, 0 where there are none."""
    if not tokens:
        return 0
    if not isinstance(tokens, list):
        raise Unpriced(f"{name} has a range that is not a list")
    return int(_decimal(name, tokens[0]))


def _rates(fields: list[_Field]) -> Iterator[Rate[Decimal]]:
    """The rates from each threshold on. A price that a threshold does not name stays as it is below it."""
    last = Rate(0, _ZERO, _ZERO, _ZERO, _ZERO)
    for above in sorted({0, *(field.above for field in fields)}):
        prices: dict[str, Decimal] = {}
        for field in fields:
            if field.above == above:
                prices[field.base] = max(field.price, prices.get(field.base, _ZERO))
        base_in, base_out = prices.get(_IN, last.input), prices.get(_OUT, last.output)
        last = Rate(
            above,
            base_in,
            base_out,
            max(base_in, prices.get(_WRITE, last.cache_write)),
            max(base_out, prices.get(_REASONING, last.reasoning)),
        )
        yield last


def _search_fee(info: Mapping[str, Any]) -> Decimal:
    """The fee of models that search the web at every request; others need a parameter that the gateway drops."""
    fees = info.get(_SEARCH)
    if not fees or not (info.get("litellm_provider") == "perplexity" or "search" in str(info.get("key", ""))):
        return _ZERO
    if not isinstance(fees, Mapping):
        raise Unpriced(f"{_SEARCH} is not an object")
    return max(_decimal(_SEARCH, fee) for fee in fees.values())


def _threshold(name: str) -> int:
    match = _THRESHOLD.search(name)
    return int(match[1]) * (1000 if match[2] else 1) if match else 0


def _decimal(name: str, value: Any) -> Decimal:
    """:raises Unpriced: not a price."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise Unpriced(f"{name} is not a number")
    try:
        price = Decimal(repr(value) if isinstance(value, float) else value)
    except InvalidOperation:
        raise Unpriced(f"{name} is not a number") from None
    # more digits than a Decimal's arithmetic keeps would be rounded, and so small a price needs huge numbers of units
    if (
        not price.is_finite()
        or not 0 <= price < 10**6
        or len(price.as_tuple().digits) > 28
        or (price and price.adjusted() < -24)
    ):
        raise Unpriced(f"{name} is not a price")
    return price
