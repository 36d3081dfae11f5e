"""Verification of JWT access tokens against FxA's published keys: 30 us of CPU, so it runs in the event loop."""

from __future__ import annotations

from jose import jws
from jose.exceptions import JOSEError

from services.auth.fxa.errors import InvalidFxAToken
from services.auth.fxa.models import FxAIdentity
from services.auth.fxa.parse import JwtToken
from shared.service.keyset import KeySet

#: jose parses the header again, including members that ``parse`` skips.
_BAD_SIGNATURE = (JOSEError, RecursionError)


async def verify_jwt(token: JwtToken, keys: KeySet) -> FxAIdentity:
    """The identity of a token whose claims ``parse`` has checked.

    :raises InvalidFxAToken: wrongly signed, or by a key that FxA does not publish.
    :raises DependencyUnavailable: no key set.
    """
    key = await keys.get(token.kid)
    if key is None:
        raise InvalidFxAToken("unknown key id")
    try:
        jws.verify(token.text, key, algorithms=["RS256"])
    except _BAD_SIGNATURE as error:
        raise InvalidFxAToken("wrong signature", lasting=True) from error
    claims = token.claims
    return FxAIdentity(claims.sub, claims.client_id, claims.scopes, claims.exp, "local", claims.iat, claims.generation)
