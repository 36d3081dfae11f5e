"""The identity of an FxA token, and the configuration of the verification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from shared.domain.identity import Credential
from shared.domain.tokens import CLOCK_SKEW, KEY_SET_KEPT

if TYPE_CHECKING:
    from services.auth.settings import AuthSettings

#: Source of an answer: the cache in Redis, our copy of FxA's keys, or FxA itself.
Source = Literal["cache", "local", "remote"]

# FxA's own forms; anything else is not from FxA. Each has one spelling: a second spelling of a uid would be a second
# user. (``\Z``: a ``$`` would let a trailing newline through.)
UID = Credential.FXA.identity
Uid = Annotated[str, msgspec.Meta(pattern=rf"^{UID.pattern}\Z")]
ClientId = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z_-]{1,64}\Z")]
#: Milliseconds: the time at which the account's password was last set.
Generation = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Kid = Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7E]{1,128}\Z")]
#: NumericDate (RFC 7519 section 2), within what a double holds exactly.
Time = Annotated[float, msgspec.Meta(ge=0, le=2**53)]
#: RFC 6749 section 3.3.
Scope = Annotated[str, msgspec.Meta(pattern=r"^[\x21\x23-\x5B\x5D-\x7E]{1,512}\Z")]


_Absent = msgspec.UnsetType


class JwsHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The header of a JWS of FxA's."""

    alg: Literal["RS256"]
    kid: Kid
    typ: str = "JWT"
    crit: msgspec.Raw | _Absent = msgspec.UNSET
    b64: msgspec.Raw | _Absent = msgspec.UNSET
    jwk: msgspec.Raw | _Absent = msgspec.UNSET
    x5u: msgspec.Raw | _Absent = msgspec.UNSET
    x5c: msgspec.Raw | _Absent = msgspec.UNSET

    @property
    def media_type(self) -> str:
        """Media types are compared without case, and ``application/`` may be left out (RFC 7515 section 4.1.9)."""
        return self.typ.lower().removeprefix("application/")

    @property
    def extended(self) -> bool:
        """Whether it has an extension that must be understood, or a key: they are never accepted."""
        forbidden = ("crit", "b64", "jku", "jwk", "x5u", "x5c")
        return any(getattr(self, name, msgspec.UNSET) is not msgspec.UNSET for name in forbidden)


class FxAIdentity(msgspec.Struct, frozen=True):
    """The account of a verified token.

    ``scopes`` are all scopes of the token, as FxA gave them. ``expires_at`` is unix time, None if FxA did not say
    (opaque tokens). ``issued_at`` is the unix time of a JWT's issue; for an opaque token, of the question to FxA.
    ``generation`` grows with each change of the account's password; None if FxA did not say.
    """

    uid: str
    client_id: str
    scopes: tuple[str, ...]
    expires_at: float | None
    source: Source
    issued_at: float = 0
    generation: int | None = None

    def found_in(self, source: Source) -> FxAIdentity:
        return msgspec.structs.replace(self, source=source)


@dataclass(frozen=True, slots=True)
class FxAConfig:
    """The configuration of the verification. All times are in seconds.

    :param base_url: with the version, without a trailing slash: ``https://oauth.accounts.firefox.com/v1``.
    :param issuer: the exact ``iss`` of JWT access tokens.
    :param cache_secret: HMAC key of the cache's keys and values.
    """

    base_url: str
    issuer: str
    cache_secret: bytes
    cache_ttl: float = 300
    #: FxA reports neither how long an opaque token lives nor when it is destroyed.
    opaque_cache_ttl: float = 60
    refusal_cache_ttl: float = 30
    clock_skew: float = CLOCK_SKEW
    #: Limit of one request to FxA, from connecting to the last byte.
    timeout: float = 2
    #: Concurrent verifications at FxA: in all, and of one source.
    max_concurrency: int = 32
    source_concurrency: int = 8
    #: The longest wait for one of those places.
    queue_wait: float = 0.5
    #: The longest that one Redis command may take before the cache is bypassed.
    cache_timeout: float = 0.5
    #: Age by which the key set should have been fetched again; it is kept longer while FxA is down.
    jwks_max_age: float = 300
    #: Age at which a key set that could not be fetched again is dropped: a key in it may have been withdrawn.
    jwks_kept: float = KEY_SET_KEPT
    #: Shortest time between two fetches that unknown key ids cause.
    unknown_kid_interval: float = 10

    @classmethod
    def from_settings(cls, settings: AuthSettings) -> FxAConfig:
        """:param settings: completed, so that the secret is set."""
        assert settings.fxa_cache_secret is not None
        return cls(
            base_url=settings.fxa_base_url.rstrip("/"),
            issuer=settings.fxa_issuer.rstrip("/"),  # as in FxA's JWTs
            cache_secret=settings.fxa_cache_secret.get_secret_value().encode(),
            cache_ttl=settings.fxa_cache_ttl_seconds,
        )
