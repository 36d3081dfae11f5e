"""The layout of a user's state in Redis: every key, every hash field, every expiry.

All keys of an identity carry the hash tag of its shard, so that a script touches one slot of a Redis Cluster. The
scripts know the constants of this module by the same names (see ``script``).
"""

from __future__ import annotations

import enum
from functools import lru_cache

from shared.domain import identity as identities
from shared.domain.identity import SHARDS

# --- the hash of a user -----------------------------------------------------------------------------------------
EPOCH = "ep"  # also of an identity: the run id of the server under which the state was built; under others, rebuild it
VERSION = "v"  # also of an identity: changes with every event that a rebuild under way must not miss
TIER = "tier"  # the service type whose money and rates hold
EXCEPTION = "exc"  # what the user may beside its tier, and until when (see packed.Excepted)
DURATION = "dur"  # seconds of a budget period
PERIOD = "idx"  # the period that SPENT and RESERVED are of
NEWEST = "hi"  # the newest period that was ever spent in: a clock that went back must ask the ledger
SPENT = "spent"  # nano-dollars
RESERVED = "res"  # nano-dollars
OPEN = "open"  # requests that run
ESTIMATED = "tok"  # estimated tokens of the requests that run
USED_TOKENS = "tps"  # tokens of the requests in the tokens window
RESERVATION = "r:"  # + request id: an open reservation (see packed.Reserved)
UNWRITTEN = "x:"  # + request id: "cost|admitted ms" of a settled request that may not be in the ledger yet

# --- the hash of an identity ------------------------------------------------------------------------------------
STANDING = "blk"  # a value of Standing
TOKENS_FROM = "from"  # unix second: access tokens that were issued before it are refused; none are without it
GENERATION = "gen"  # the highest generation of its FxA tokens, as auth saw it
KNOWN_USER = "u:"  # + service type: the run id of the server to which auth wrote that there is a user row

# --- the hash of a shard's totals (fields of sums: packed.sum_field) --------------------------------------------
SUM_SPENT = "s|"
SUM_RESERVED = "r|"
BUILT = "b|"  # + total: its sums are built under EPOCH
BUILDING = "building"  # the name of the newest build of sums, while it runs

# --- the hash of the sums of all shards (fields of sums: the total's name) ----------------------------------------
READING = "reading"  # ms: the last time at which a gateway began to read the shards

# --- expiries and windows ---------------------------------------------------------------------------------------
WINDOW = 60_000  # of RPM and TPM, milliseconds
IDLE = 172_800  # seconds that an unused user's or identity's state is kept; it's rebuilt from PostgreSQL
SETTLED = 600  # seconds that a settled request is remembered
REAPED = 86_400  # seconds in which a late settlement may still lower what the reaper charged
REBUILT = 60  # seconds after which whatever PostgreSQL answered has reached Redis, or never will


class Standing(enum.StrEnum):
    """The decision about an identity, in all its service types."""

    GOOD = "0"
    BLOCKED = "blocked"
    REVOKED = "revoked"  # its device is

    @classmethod
    def of(cls, *, blocked: object, revoked: object) -> Standing:
        return cls.BLOCKED if blocked else cls.REVOKED if revoked else cls.GOOD


GOOD = Standing.GOOD.value


class Shard:
    """The keys of one shard."""

    __slots__ = ("claim", "forgotten", "leases", "number", "outbox", "prefix", "sums", "totals")

    def __init__(self, number: int) -> None:
        self.number = number
        self.prefix = f"mlpa:{identities.shard_tag(number)}:"
        #: ZSET of open requests, ``request id + " " + user id``, by the time at which their lease ends.
        self.leases = f"{self.prefix}leases"
        #: HASH of ledger rows that PostgreSQL may not have yet, by request id (see packed.LedgerRow).
        self.outbox = f"{self.prefix}outbox"
        #: HASH of what users spent and reserved together, per service type with a total budget.
        self.totals = f"{self.prefix}totals"
        #: HASH of what the totals of all shards add up to; of the first shard alone.
        self.sums = f"{self.prefix}sums"
        #: STRING, the time of the last erasure: with it changes the version of every identity of the shard, since
        #: nothing is left of the erased one that could have a version.
        self.forgotten = f"{self.prefix}forgotten"
        #: STRING, the gateway that looks after this shard at the moment.
        self.claim = f"{self.prefix}claim"

    @property
    def users(self) -> str:
        """The beginning of the keys of this shard's users."""
        return f"{self.prefix}u:"

    def user(self, user_id: str) -> str:
        """HASH, the state of a user."""
        return f"{self.prefix}u:{user_id}"

    def identity(self, identity: str) -> str:
        """HASH, the state of an identity in all its service types."""
        return f"{self.prefix}i:{identity}"

    def token(self, jti: str) -> str:
        """STRING, present while a revoked token would still be valid."""
        return f"{self.prefix}j:{jti}"

    def requests_window(self, user_id: str) -> str:
        """ZSET of the requests that RPM counts, by the time of their admission."""
        return f"{self.prefix}w:{user_id}"

    def tokens_window(self, user_id: str) -> str:
        """ZSET of what TPM counts, ``request id + " " + tokens``, by the time of the settlement."""
        return f"{self.prefix}t:{user_id}"

    def tombstone(self, request: str) -> str:
        """STRING, how a request ended, for a while: ``reaped NANO ADMITTED_MS``, or what ``settle.lua`` replied."""
        return f"{self.prefix}d:{request}"


SHARD_KEYS = tuple(map(Shard, range(SHARDS)))


def of_identity(identity: str) -> Shard:
    return SHARD_KEYS[identities.shard(identity)]


@lru_cache(maxsize=65_536)
def of_user(user_id: str) -> Shard:
    return of_identity(identities.identity_of(user_id))


def user_key(user_id: str) -> str:
    return of_user(user_id).user(user_id)


def identity_key(identity: str) -> str:
    return of_identity(identity).identity(identity)


def token_key(identity: str, jti: str) -> str:
    return of_identity(identity).token(jti)
