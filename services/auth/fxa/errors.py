"""Why an FxA token, or its use, is refused. "Could not check it" is never one of these.

    FxARefusal
    ├── InvalidFxAToken       the token is not good: malformed, expired, revoked, wrongly signed
    ├── ScopeNotAllowed       a good token, without a scope that the service type needs
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
    :param source: who found out.
    :param lasting: asking again would change nothing, so that it may be remembered.
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
