"""A paid operation: one that asks LiteLLM and is charged. Here is what differs between them; the rest is shared."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any, NamedTuple, Protocol, TypeVar

from services.gateway.budget.models import Reservation, Usage
from services.gateway.catalogue.prices import PricedModel
from services.gateway.catalogue.services import Catalogue
from services.gateway.errors import InvalidModel
from services.gateway.relay.metrics import Labels
from shared.domain.outcome import Outcome
from shared.domain.service_types import ServiceType
from shared.errors import DependencyUnavailable


class Size(NamedTuple):
    """The size of a request, as its admission needs it.

    ``prompt_bound``, ``estimate``, ``limit`` and ``n`` are those of ``Ask``. ``wanted`` is the completion limit that
    the client itself gave, or 0.
    """

    prompt_bound: int
    estimate: int
    limit: int = 0
    n: int = 1
    wanted: int = 0


class Asked(Protocol):
    """A valid request of a paid operation."""

    @property
    def stream(self) -> bool:
        """Whether the answer is a stream of events."""

    @property
    def large_answer(self) -> bool:
        """Whether the answer may be large though the request is small."""


class Tally(Protocol):
    """The count of one answer, by which it is charged."""

    @property
    def usage(self) -> Usage | None:
        """The reported usage; None if there is none that can be true."""

    @property
    def cost(self) -> Decimal | None:
        """The reported cost in USD."""

    @property
    def text(self) -> int:
        """UTF-8 bytes of what the model wrote."""

    @property
    def error(self) -> Any:
        """The error object in place of an answer."""

    def read_answer(self, body: bytes) -> bytes:
        """Read a whole answer. Returns the body for the client.

        :raises UpstreamError: it is not an answer.
        """


class StreamTally(Tally, Protocol):
    """The count of an answer that is a stream."""

    @property
    def started(self) -> bool:
        """An event arrived that is neither a comment nor an error."""

    @property
    def done(self) -> bool:
        """The stream's own end has been seen."""

    @property
    def over(self) -> bool:
        """The stream's own end or an error has been seen: nothing after it is counted or relayed."""

    @property
    def complete(self) -> bool:
        """Whether nothing is missing although the stream's own end is."""

    def read(self, block: bytes) -> bytes:
        """Read whole events. Returns the bytes for the client."""

    def read_last(self, rest: bytes) -> bytes:
        """Read the last event of a stream that lacks its end. Returns the bytes for the client."""


A = TypeVar("A", bound=Asked)
T = TypeVar("T", bound=Tally)
T_contra = TypeVar("T_contra", bound=Tally, contravariant=True)


class OperationMetrics(Protocol[T_contra]):
    """The metrics of one operation, beside those of all (``RelayMetrics``)."""

    def preset(self, models: Iterable[str], rows: Iterable[ServiceType]) -> None:
        """Make series of known values. May be called again when there are other models."""

    def begun(self, seconds: float, model: str) -> None:
        """The first event of a stream has gone out. Operations without streams have nothing to count here."""
        return

    def ended(self, result: Outcome, seconds: float, labels: Labels, tally: T_contra) -> None:
        """An admitted request is over: a success, an error (a timeout is one) or an abort."""


class PaidOperation(Protocol[A, T]):
    """One paid operation, as far as it differs from others. The rest is shared: ``views.serve`` and ``Relay``."""

    @property
    def metrics(self) -> OperationMetrics[T]: ...

    @property
    def deadline(self) -> float:
        """Longest time of a whole request in seconds; 0 means no limit."""

    @property
    def most_items(self) -> int:
        """Members and elements that a body may have."""

    def parse(self, body: bytes, row: ServiceType) -> A:
        """Validate a body.

        :raises InvalidRequest, InvalidModel, RequestTooLarge: ``Malformed`` if it is not JSON.
        """

    def model(self, asked: A, row: ServiceType, catalogue: Catalogue) -> PricedModel:
        """The model or tool that the request asks, with its prices.

        :raises InvalidModel: there is no such model, or the service type may not use it.
        :raises DependencyUnavailable: the models are not known yet.
        """

    def size(self, asked: A, model: PricedModel) -> Size:
        """The size of the request.

        :raises RequestTooLarge: the model can't take it.
        """

    def path(self, asked: A) -> str:
        """The path at LiteLLM, without a leading slash."""

    def encode(self, asked: A, reservation: Reservation) -> bytes:
        """The body for LiteLLM."""

    def tally(self, asked: A) -> T:
        """A count of the answer; a ``StreamTally`` if the answer is a stream."""


def permitted(name: str, row: ServiceType, catalogue: Catalogue, *, embedding: bool = False) -> PricedModel:
    """The model of this name.

    :param embedding: whether it has to make embeddings; otherwise it has not to.
    :raises InvalidModel: there is none, it is of the other kind, or the service type may not use it.
    :raises DependencyUnavailable: the models are not known yet.
    """
    model = catalogue.get(name)
    if not catalogue.loaded:
        raise DependencyUnavailable("litellm")
    if model is None:
        raise InvalidModel
    if not row.allows_model(name):
        raise InvalidModel.forbidden(name, row.name)
    if model.embedding is not embedding:
        raise InvalidModel("The model makes embeddings alone." if model.embedding else "The model makes no embeddings.")
    return model
