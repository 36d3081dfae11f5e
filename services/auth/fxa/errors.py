"""Refusals of an FxA token or of its use. "It could not be checked" is never one of these.

    FxARefusal
    ├── InvalidFxAToken       the token is not good: malformed, expired, revoked, wrongly signed
    ├── ScopeNotAllowed       a good token that lacks a scope which the service type needs
    └── ClientNotAllowed      a good token of a relying party that the service type does not take

When FxA could not be asked: ``shared.errors.DependencyUnavailable("fxa")``.
"""

from __future__ import annotations

from services.auth.fxa.models import Source


class FxARefusal(Exception):
    """A definite refusal."""


class InvalidFxAToken(FxARefusal):
    """
    :param reason: for logs, in our words; never a part of the token.
    :param source: where the refusal comes from.
    :param lasting: asking again would give the same answer, so it may be cached.
    """

    def __init__(self, reason: str, *, source: Source = "local", lasting: bool = False) -> None:
        self.reason = reason
        self.source = source
        self.lasting = lasting
        super().__init__(reason)


class ScopeNotAllowed(FxARefusal):
    pass


class ClientNotAllowed(FxARefusal):
    pass
