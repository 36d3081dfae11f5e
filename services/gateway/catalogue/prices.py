"""The prices of models: LiteLLM's ``/model/info`` and the ``[[model]]`` rows, in whole units of money."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

from services.gateway.catalogue import price_fields
from services.gateway.catalogue.price_fields import Prices, Rate, Unpriced
from shared.domain.service_types import LEAST_COMPLETION, ModelRow

_MODEL_DEFAULTS = ModelRow("", None, None)


#: Names of the completion limit, the best first: LiteLLM turns ``max_tokens`` into each provider's own.
_LIMIT_NAMES = ("max_tokens", "max_completion_tokens")
#: The names that reach these providers with a model that LiteLLM does not know, and so lists no parameters of. To other
#: providers it passes ``max_completion_tokens`` on (``get_supported_openai_params`` of LiteLLM 1.106.2).
_UNLISTED: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "azure_text", "bedrock", "bedrock_converse", "hyperbolic", "maritalk", "nlp_cloud", "nscale", "petals",
            "replicate", "text-completion-openai", "watsonx", "watsonx_text", "zai",
        ),
        ("max_tokens",),
    ),
    "morph": (),
    "v0": (),
}  # fmt: skip

#: Models to which LiteLLM passes lists of tokens on. For others it turns them into text
#: (``LITELLM_EMBEDDING_PROVIDERS_SUPPORTING_INPUT_ARRAY_OF_TOKENS`` in litellm/constants.py, 1.106.2).
_TAKE_TOKENS = ("openai", "azure", "hosted_vllm", "nebius", "text-embedding-ada-002")


@dataclass(frozen=True, slots=True)
class PricedModel:
    """A model that may be asked. ``input_price`` and ``output_price`` are the dearest that can apply, USD per token.

    The same as whole numbers: ``input_units / scale`` is nano-dollars per token, exactly; ``rates`` are in these units.
    """

    name: str
    input_price: Decimal
    output_price: Decimal
    min_completion_tokens: int = LEAST_COMPLETION
    prompt_bytes_per_token: int = _MODEL_DEFAULTS.prompt_bytes_per_token
    max_tokens_per_image: int = _MODEL_DEFAULTS.max_tokens_per_image
    reasoning: bool = False
    context_window: int | None = None
    max_output_tokens: int | None = None
    limit_name: str = _LIMIT_NAMES[-1]
    #: It makes embeddings, and nothing else; others make none.
    embedding: bool = False
    #: LiteLLM may turn lists of tokens into text for it.
    decodes_tokens: bool = False
    #: The numbers of one embedding, if LiteLLM knows it.
    vector_size: int | None = None
    prices: Prices | None = field(default=None, repr=False)
    scale: int = field(init=False, repr=False)
    input_units: int = field(init=False, repr=False)
    output_units: int = field(init=False, repr=False)
    request_units: int = field(init=False, repr=False)
    rates: tuple[Rate[int], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        prices = self.prices or price_fields.flat(self.input_price, self.output_price)
        every = [self.input_price, self.output_price, prices.request, *chain(*(rate[1:] for rate in prices.rates))]
        decimals = max(_decimals(price) for price in every)

        def units(price: Decimal) -> int:
            return int(price.scaleb(9 + decimals))

        values = {
            "scale": 10**decimals,
            "input_units": units(self.input_price),
            "output_units": units(self.output_price),
            "request_units": units(prices.request),
            "rates": tuple(Rate(rate.above, *map(units, rate[1:])) for rate in prices.rates),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)


def _decimals(price: Decimal) -> int:
    """The number of decimals of a price in nano-dollars."""
    exponent = price.scaleb(9).normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def price_all(
    entries: Iterable[Mapping[str, Any]], rows: Mapping[str, ModelRow], unreadable: Mapping[str, str] | None = None
) -> tuple[dict[str, PricedModel], dict[str, str]]:
    """``(models by name, reasons by name why the others are refused)``.

    A name with several deployments costs what the dearest costs, and is refused if one of them is. A row's prices
    replace LiteLLM's; a row with both names a model that LiteLLM serves by a wildcard. A model that its row switches
    off is in neither.

    :param entries: as ``model_info.read`` gives them, as is ``unreadable``: reasons by name why others can't be read.
    """
    deployments: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        deployments.setdefault(entry["model_name"], []).append(entry)
    wildcards = [name for name in deployments if "*" in name]
    by_wildcard: dict[str, list[Mapping[str, Any]]] = {}
    for name in rows:
        if name not in deployments and (found := [pattern for pattern in wildcards if fnmatchcase(name, pattern)]):
            by_wildcard[name] = [entry for pattern in found for entry in deployments[pattern]]
    for name in by_wildcard:
        deployments[name] = []
    models: dict[str, PricedModel] = {}
    refused: dict[str, str] = dict(unreadable or {})
    for name, served in deployments.items():
        if name in wildcards or name in refused or not rows.get(name, _MODEL_DEFAULTS).enabled:
            continue
        try:
            models[name] = _price(name, served, rows.get(name), by_wildcard.get(name, served))
        except Unpriced as reason:
            refused[name] = ascii(str(reason))[1:-1]  # it may quote a field's name
        except Exception as error:  # an operator may write anything into an entry; the others are still served
            refused[name] = f"is not understood ({type(error).__name__})"
    return models, refused


def _price(
    name: str, deployments: list[Mapping[str, Any]], row: ModelRow | None, answering: list[Mapping[str, Any]]
) -> PricedModel:
    """Price a model.

    :param answering: the entries that answer: ``deployments``, or those of wildcards.
    :raises Unpriced: also where no name for the completion limit is known to reach the provider.
    """
    given_in = row.input_cost_per_token if row else None
    given_out = row.output_cost_per_token if row else None
    infos = [price_fields.part(entry, "model_info") for entry in deployments]
    embedding = _makes_embeddings(answering)
    if given_in is not None and given_out is not None:
        prices = price_fields.flat(given_in, given_out)
    elif deployments:
        prices = price_fields.dearest(
            [price_fields.read(_with_row(entry, given_in, given_out)) for entry in deployments]
        )
    else:
        raise Unpriced("no price")
    reasoning = bool(row and row.reasoning) or any(info.get("supports_reasoning") is True for info in infos)
    windows = [size for info in infos if type(size := info.get("max_input_tokens")) is int and size > 0]
    outputs = [size for info in infos if type(size := info.get("max_output_tokens")) is int and size > 0]
    vectors = [size for info in infos if type(size := info.get("output_vector_size")) is int and size > 0]
    settings = row or _MODEL_DEFAULTS
    return PricedModel(
        name=name,
        input_price=prices.input,
        output_price=prices.output,
        min_completion_tokens=settings.least_completion(reasoning=reasoning),
        prompt_bytes_per_token=settings.prompt_bytes_per_token,
        max_tokens_per_image=settings.max_tokens_per_image,
        reasoning=reasoning,
        context_window=min(windows, default=None),
        max_output_tokens=min(outputs, default=None),
        limit_name=_LIMIT_NAMES[0] if embedding else _limit_name(answering),
        embedding=embedding,
        vector_size=max(vectors, default=None),
        decodes_tokens=not all(_takes_tokens(entry) for entry in answering),
        prices=prices,
    )


def _makes_embeddings(entries: list[Mapping[str, Any]]) -> bool:
    """:raises Unpriced: some deployments do, and some don't."""
    found = {price_fields.makes_embeddings(entry) for entry in entries}
    if len(found) > 1:
        raise Unpriced("makes embeddings in some of its deployments alone")
    return found == {True}


def _takes_tokens(entry: Mapping[str, Any]) -> bool:
    """Whether lists of tokens reach the provider as they are."""
    model = price_fields.part(entry, "litellm_params").get("model")
    return isinstance(model, str) and model.startswith(_TAKE_TOKENS)


def _limit_name(entries: list[Mapping[str, Any]]) -> str:
    """The name that every deployment takes. LiteLLM drops others silently, and the answer would have no limit.

    :raises Unpriced: there is none.
    """
    known = [names for entry in entries if (names := _taken(entry)) is not None]
    for name in _LIMIT_NAMES if known else _LIMIT_NAMES[-1:]:
        if all(name in names for names in known):
            return name
    raise Unpriced(f"takes no completion limit ({' or '.join(_LIMIT_NAMES)})")


def _taken(entry: Mapping[str, Any]) -> Sequence[Any] | None:
    """The parameters that a deployment takes, as far as they decide on the limit's name; None when unknown."""
    names = price_fields.part(entry, "model_info").get("supported_openai_params")
    if isinstance(names, list):
        return names
    params = price_fields.part(entry, "litellm_params")
    provider = params.get("custom_llm_provider") or str(params.get("model")).partition("/")[0]
    return _UNLISTED.get(provider) if isinstance(provider, str) else None


def _with_row(entry: Mapping[str, Any], given_in: Decimal | None, given_out: Decimal | None) -> Mapping[str, Any]:
    """The entry, where a price of the row replaces all fields of its side."""
    for side, price in (("input", given_in), ("output", given_out)):
        if price is None:
            continue
        params, info = (
            {name: value for name, value in price_fields.part(entry, part).items() if not _is_side(name, side)}
            for part in ("litellm_params", "model_info")
        )
        entry = {**entry, "model_info": info, "litellm_params": {**params, f"{side}_cost_per_token": price}}
    return entry


def _is_side(name: str, side: str) -> bool:
    return side in name and "cost" in name
