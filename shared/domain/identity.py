"""Who a request is for, and on which shard that user's state lives.

An *identity* is an FxA uid (32 hex characters) or a canonical App Attest key id (standard base64, padded).
A *user id* is ``<identity>:<service type>``: the ``sub`` of an access token, and the end user in LiteLLM.
"""

from __future__ import annotations

import hashlib
import re

SHARDS = 64
#: Characters of an identity, by the kind of credential that names it.
IDENTITY_LENGTHS = {"fxa": 32, "app_attest": 44}
#: Characters of a user id, at most: OpenAI refuses a longer end-user identifier (platform.openai.com, `user`).
MAX_USER_ID = 64
_USER_ID = re.compile(r"(?:[0-9a-f]{32}|[A-Za-z0-9+/]{43}=):[a-z0-9][a-z0-9_-]{0,31}")


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


def longest_service_type(credential: str) -> int:
    """How many characters the name of a service type may have for its user ids to fit."""
    return MAX_USER_ID - len(":") - IDENTITY_LENGTHS[credential]


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
