"""Identities and user ids, and the shard of each.

An *identity* is what a credential proves: an FxA uid, a canonical App Attest key id, or the id of an install from
Google Play.
A *user id* is ``<identity>:<service type>``: the ``sub`` of an access token, and the end user in LiteLLM.
"""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from typing import Self

SHARDS = 64
#: Characters of a user id, at most: OpenAI refuses a longer end-user identifier (platform.openai.com, ``user``).
MAX_USER_ID = 64


class Credential(StrEnum):
    """The kinds of credential, by their names in rows of service types and in ``amr``.

    A new kind is a member here, a file in ``services/auth/exchange/credentials``, and a line in the list there. Kinds
    that prove the same identities have the same pattern; otherwise patterns don't overlap.
    """

    #: RFC 8693's name of a credential of this kind.
    subject_token_type: str
    #: The identities that it proves, each of ``identity_length`` characters.
    identity: re.Pattern[str]
    identity_length: int

    FXA = "fxa", "urn:ietf:params:oauth:token-type:access_token", r"[0-9a-f]{32}", 32
    APP_ATTEST = (
        "app_attest",
        "urn:mozilla:params:oauth:token-type:app-attest-assertion",
        r"[A-Za-z0-9+/]{43}=",  # standard base64, padded
        44,
    )
    APP_ATTEST_REQUEST = (
        "app_attest_request",
        "urn:mozilla:params:oauth:token-type:app-attest-request",
        r"[A-Za-z0-9+/]{43}=",
        44,
    )
    PLAY = (
        "play",
        "urn:mozilla:params:oauth:token-type:play-integrity",
        r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",  # a lower-case UUID
        36,
    )

    def __new__(cls, name: str, subject_token_type: str, identity: str, identity_length: int) -> Self:
        kind = str.__new__(cls, name)
        kind._value_ = name
        kind.subject_token_type = subject_token_type
        kind.identity = re.compile(identity)
        kind.identity_length = identity_length
        return kind

    @classmethod
    def of(cls, identity: str) -> Self | None:
        """The first kind of credential that proves an identity; None for what is not an identity."""
        return next((kind for kind in cls if kind.identity.fullmatch(identity)), None)


_USER_ID = re.compile(f"(?:{'|'.join(kind.identity.pattern for kind in Credential)}):[a-z0-9][a-z0-9_-]{{0,31}}")


def shard(identity: str) -> int:
    """The shard of an identity, 0 to 63; fixed for good, since stored keys depend on it."""
    return hashlib.sha256(identity.encode()).digest()[0] % SHARDS


def shard_tag(number: int) -> str:
    """The Redis Cluster hash tag of a shard: ``{s07}``."""
    return f"{{s{number:02d}}}"


def tag(identity: str) -> str:
    """The Redis Cluster hash tag under which all keys of an identity live."""
    return shard_tag(shard(identity))


def user_id(identity: str, service_type: str) -> str:
    return f"{identity}:{service_type}"


def longest_service_type(credential: Credential) -> int:
    """The most characters of a service type's name for its user ids to fit."""
    return MAX_USER_ID - len(":") - credential.identity_length


def is_user(text: str) -> bool:
    """Whether it has the form of a user id."""
    return _USER_ID.fullmatch(text) is not None


def split_user(user: str) -> tuple[str, str]:
    """``(identity, service type)`` of a user id.

    :raises ValueError: not a user id.
    """
    if not is_user(user):
        raise ValueError("not a user id")
    identity, _, service_type = user.rpartition(":")
    return identity, service_type


def identity_of(text: str) -> str:
    """The identity of a user id, or the text itself, which may be an identity."""
    return text.rpartition(":")[0] or text
