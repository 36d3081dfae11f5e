"""Refusals of an FxA token or of its use. A token that could not be checked is never refused.

When FxA could not be asked, the error is ``shared.errors.DependencyUnavailable("fxa")``.
"""

from __future__ import annotations

from services.auth.fxa.models import Source


class InvalidFxAToken(Exception):
    """The token is malformed, expired, revoked or wrongly signed.

    :param reason: for logs, in our words; never a part of the token.
    :param source: where the refusal comes from.
    :param lasting: asking again would give the same answer, so it may be cached.
    """

    def __init__(self, reason: str, *, source: Source = "local", lasting: bool = False) -> None:
        self.reason, self.source, self.lasting = reason, source, lasting
        super().__init__(reason)


class ScopeNotAllowed(Exception):
    """The token lacks a scope that the service type needs."""


class ClientNotAllowed(Exception):
    """The service type does not take tokens of this relying party."""
