"""Verification of the Security Event Tokens (RFC 8417) in which FxA says what has happened to an account.

Pure: a token, FxA's key, our client ids and the time go in, and the events or a ``Refused`` with its reason come out.
Only a token whose signature is good is looked into.

FxA writes the header ``{alg, kid}``, an ``iss`` with a slash at its end, an ``iat`` with fractions, and a new
``jti`` at each delivery (mozilla/fxa, packages/fxa-event-broker/src/jwtset/jwtset.service.ts; mozilla/fxa-jwtool).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from jose import jws
from jose.backends.base import Key
from jose.exceptions import JOSEError

from services.auth.fxa.models import JwsHeader, Time, Uid
from shared import strict_json
from shared.domain.tokens import CLOCK_SKEW, decode_segment

MAX_CHARACTERS = 16 * 1024
#: How far the time of issue may be away, in seconds. FxA makes a token for each delivery.
MAX_AGE = 600
MAX_EVENTS = 16
#: Events have names below this (mozilla/fxa, packages/fxa-event-broker/src/jwtset/set.interface.ts).
SCHEMA = "https://schemas.accounts.firefox.com/event/"
PASSWORD_CHANGE, DELETE_USER = "password-change", "delete-user"
OTHER = "other"
TYPES = (PASSWORD_CHANGE, DELETE_USER, "profile-change", "subscription-state-change", "apple-user-migration", OTHER)
_BY_URI = {SCHEMA + name: name for name in TYPES}

_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_DIGITS = re.compile(r"[0-9]{1,16}")
_MEDIA_TYPES = ("jwt", "secevent+jwt")


class Reason(StrEnum):
    """Why a token was refused."""

    #: Whether FxA signed it: then something is wrong with its events or with our settings.
    signed: bool

    MISSING = "missing", False
    LENGTH = "length", False
    FORM = "form", False  # not a compact JWS
    HEADER = "header", False  # not RS256 with a kid
    TYPE = "type", False  # an access token, or of another media type
    EXTENSION = "extension", False  # it must be understood, or is a key of the token's own
    KEY = "key", False  # FxA publishes none of this kid
    SIGNATURE = "signature", False
    CLAIMS = "claims", True
    ISSUER = "issuer", True
    AUDIENCE = "audience", True
    AGE = "age", True  # issued too long ago or ahead, or outside of its own times
    EVENTS = "events", True  # none, too many, or not objects
    CHANGE_TIME = "change_time", True

    def __new__(cls, name: str, signed: bool) -> Reason:
        member = str.__new__(cls, name)
        member._value_ = name
        member.signed = signed
        return member


#: Reasons for which the token is well made for us, and its content is not.
MALFORMED = frozenset({Reason.CLAIMS, Reason.EVENTS, Reason.CHANGE_TIME})


class Refused(Exception):
    def __init__(self, reason: Reason) -> None:
        self.reason = reason
        super().__init__(reason.value)


@dataclass(frozen=True, slots=True)
class Unverified:
    """A token of the right form, and the id of the key that should verify it."""

    text: str = field(repr=False)
    kid: str


@dataclass(frozen=True, slots=True)
class AccountEvents:
    """What happened to an account.

    ``jti`` is good until ``expires_at``. ``types`` are of ``TYPES``. ``password_changed_ms``: unix time, if it did.
    """

    uid: str
    jti: str
    expires_at: float
    types: tuple[str, ...]
    password_changed_ms: int | None
    deleted: bool


class _Claims(msgspec.Struct, frozen=True):
    iss: str
    aud: str | list[str]
    sub: Uid
    iat: Time
    jti: Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7E]{1,128}\Z")]
    events: Any
    exp: Time = 2**53
    nbf: Time = 0


def parse(text: str) -> Unverified:
    """The token, if it has the form of FxA's.

    :raises Refused: LENGTH, FORM, HEADER, TYPE or EXTENSION.
    """
    if len(text) > MAX_CHARACTERS:
        raise Refused(Reason.LENGTH)
    segments = _COMPACT.fullmatch(text)
    if segments is None:
        raise Refused(Reason.FORM)
    try:
        header = decode_segment(segments[1], JwsHeader)  # a ``jku`` is ignored: FxA's keys have a known address
    except ValueError as error:
        raise Refused(Reason.HEADER) from error
    if header.media_type not in _MEDIA_TYPES:
        raise Refused(Reason.TYPE)
    if header.extended:
        raise Refused(Reason.EXTENSION)
    return Unverified(text, header.kid)


def verify(token: Unverified, key: Key, *, issuer: str, client_ids: Collection[str], now: float) -> AccountEvents:
    """The events of a token.

    :param key: FxA's of the token's ``kid``.
    :param issuer: without a slash at its end.
    :raises Refused: SIGNATURE, CLAIMS, ISSUER, AUDIENCE, AGE, EVENTS or CHANGE_TIME.
    """
    try:
        payload = jws.verify(token.text, key, algorithms=["RS256"])
    except JOSEError as error:
        raise Refused(Reason.SIGNATURE) from error
    try:
        claims = strict_json.decode(payload, _Claims)
    except ValueError as error:
        raise Refused(Reason.CLAIMS) from error
    if claims.iss.removesuffix("/") != issuer:
        raise Refused(Reason.ISSUER)
    audience = [claims.aud] if isinstance(claims.aud, str) else claims.aud
    if not any(one in client_ids for one in audience):
        raise Refused(Reason.AUDIENCE)
    if abs(now - claims.iat) > MAX_AGE or claims.exp <= now or claims.nbf > now + CLOCK_SKEW:
        raise Refused(Reason.AGE)
    if not isinstance(claims.events, dict) or not 0 < len(claims.events) <= MAX_EVENTS:
        raise Refused(Reason.EVENTS)
    if not all(isinstance(event, dict) for event in claims.events.values()):
        raise Refused(Reason.EVENTS)
    changed = claims.events.get(SCHEMA + PASSWORD_CHANGE)
    return AccountEvents(
        uid=claims.sub,
        jti=claims.jti,
        expires_at=claims.iat + MAX_AGE,
        types=tuple(_BY_URI.get(uri, OTHER) for uri in claims.events),
        password_changed_ms=None if changed is None else _change_time(changed, now),
        deleted=SCHEMA + DELETE_USER in claims.events,
    )


def _change_time(event: dict[str, Any], now: float) -> int:
    """:raises Refused: CHANGE_TIME: not milliseconds as a number or as digits, or too far ahead."""
    value = event.get("changeTime")
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= (now + CLOCK_SKEW) * 1000:
        raise Refused(Reason.CHANGE_TIME)
    return int(value)
