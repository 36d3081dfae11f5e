"""Child spans of a traced request, for questions to dependencies. They cost nothing while tracing is off."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Protocol


class Traced(Protocol):
    """The request that is being traced."""

    def child(self, name: str, system: str) -> AbstractContextManager[None]:
        """A span below the request's, which ends with the block and is an error if that raises."""


#: The traced request that is being served; unset for all others.
current: ContextVar[Traced] = ContextVar("traced_request")
_NOTHING = nullcontext()


def child(name: str, system: str) -> AbstractContextManager[None]:
    """A span of one question to a dependency, if the request that asks it is traced.

    :param name: constant text, or that of our own scripts and statements; nothing of a client's.
    :param system: ``redis``, ``postgresql`` or ``litellm``.
    """
    traced = current.get(None)
    return _NOTHING if traced is None else traced.child(name, system)
