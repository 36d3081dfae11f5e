"""Redis (or Valkey, or a Redis Cluster), bounded in connections and in time."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import traceback
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from redis._parsers.base import BaseParser
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.client import Pipeline
from redis.asyncio.cluster import ClusterPipeline
from redis.asyncio.connection import AbstractConnection, ConnectionPool, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError as RedisError,
    ResponseError,
    SlotNotCoveredError,
    TimeoutError,
)

from shared.errors import DependencyUnavailable
from shared.stores.dependency import Dependency
from shared.stores.redis_wire import Node, ScriptFailed, pack
from shared.telemetry import spans

#: Schemes of a Redis Cluster: ``redis+cluster``, ``rediss+cluster``.
_CLUSTER = "+cluster"
_SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster")
_FORMS = "must be a redis://, rediss://, unix://, redis+cluster:// or rediss+cluster:// URL"
_PASSWORD_FILE = "password_file"  # noqa: S105 - the name of a parameter

Client = Redis
#: A command's arguments, and redis-py's options for it.
_Command = tuple[Sequence[Any], Mapping[str, Any]]

#: Reasons for the log and readiness, by the first word of an answer that shows the server's state.
_ANSWERS = {
    "NOPERM": "the user lacks a right (NOPERM)",
    "READONLY": "the server is a replica and takes no writes (READONLY)",
    "NOREPLICAS": "the server has too few replicas to take writes (NOREPLICAS)",
    "OOM": "the server's memory is full (OOM)",
    "MISCONF": "the server can't save its data and takes no writes (MISCONF)",
    "LOADING": "the server is still loading its data (LOADING)",
    "BUSY": "the server is busy with a script (BUSY)",
    "CLUSTERDOWN": "the cluster has no owner for some slots (CLUSTERDOWN)",
    "MASTERDOWN": "the replica has lost its primary (MASTERDOWN)",
    "WRONGPASS": "the server refuses the user name or password (WRONGPASS)",
    "NOAUTH": "the server wants a password (NOAUTH)",
}
#: Of these, the ones in which the server answers other commands: only a write ends them.
_SHOWN_BY_WRITES = {_ANSWERS[code] for code in ("NOPERM", "READONLY", "NOREPLICAS", "OOM", "MISCONF", "CLUSTERDOWN")}
#: Classes of redis-py's that have lost the first word, the most special one first.
_STATES: dict[type[RedisError], str] = {
    NoPermissionError: "NOPERM",
    ReadOnlyError: "READONLY",
    OutOfMemoryError: "OOM",
    BusyLoadingError: "LOADING",
    ClusterDownError: "CLUSTERDOWN",
    MasterDownError: "MASTERDOWN",
    AuthenticationError: "WRONGPASS",
}
#: How Redis words NOAUTH, for a command and for HELLO.
_NOAUTH = ("Authentication required", "already authenticated")


@dataclass(frozen=True, slots=True)
class Place:
    """The target of a REDIS_URL, in the form that redis-py takes."""

    url: str = field(repr=False)
    clustered: bool
    credentials: CredentialProvider | None

    @classmethod
    def of(cls, url: str) -> Place:
        """Read ``redis://``, ``rediss://``, ``unix://``, or for a Redis Cluster ``redis+cluster://``,
        ``rediss+cluster://``.

        ``?password_file=PATH`` names a file whose content is the password at the time of each connection, for
        passwords that rotate.
        """
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query))
        path = options.pop(_PASSWORD_FILE, None)
        plain = parts._replace(scheme=parts.scheme.removesuffix(_CLUSTER))
        credentials: CredentialProvider | None = None
        if path is not None:
            credentials = _PasswordFile(unquote(parts.username or ""), Path(path))
            plain = plain._replace(netloc=parts.netloc.rpartition("@")[2], query=urlencode(options))
        return cls(urlunsplit(plain), parts.scheme.endswith(_CLUSTER), credentials)


class _PasswordFile(CredentialProvider):
    """Reads the password again for each connection."""

    def __init__(self, username: str, path: Path) -> None:
        self._username, self._path = username, path

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """:raises ConnectionError: the file can't be read."""
        try:
            password = self._path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConnectionError(f"the password file of REDIS_URL can't be read: {type(error).__name__}") from None
        return (self._username, password) if self._username else (password,)


def check_url(url: str) -> None:
    """:raises ValueError: ``connect`` can't use the URL. The message quotes none of it."""
    try:
        place = Place.of(url)
        fields = parse_url(place.url)
        # refuses options that redis-py doesn't know
        ConnectionPool.from_url(place.url).make_connection()  # type: ignore[no-untyped-call]
        known = urlsplit(url).scheme in _SCHEMES
        # a slash that a password has in the clear ends the authority before its "@"
        usable = known and ("host" in fields or "path" in fields) and "@" not in "".join(urlsplit(url)[2:])
    except (ValueError, TypeError):
        usable = False
    if not usable:
        raise ValueError(f"{_FORMS}, with options of redis-py; special characters of a password are percent-encoded")
    if place.credentials is not None and "password" in parse_url(urlunsplit(urlsplit(url)._replace(query=""))):
        raise ValueError("has a password and a password_file")


def connect(url: str, *, timeout: float = 1.0, state: Dependency | None = None) -> Client:
    """A client that answers, or raises ``RedisError``, within ``timeout`` seconds; opens connections as needed.

    :param url: see ``Place.of``.
    :param state: informed of connections that fail or are made, and of answers that show a state of the server.
    """
    place = Place.of(url)
    state = state or Dependency("redis")
    if place.clustered:
        cluster: Any = _Cluster.from_url(
            place.url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            max_connections=64,
            credential_provider=place.credentials,
            protocol=2,  # RESP 3 has a handshake of its own, during which redis-py may close the connection
            retry=Retry(NoBackoff(), 1),
        )
        return cluster  # type: ignore[no-any-return]  # same commands, no common base class
    return _Server(server_pool(place, state, timeout), state, timeout)


def server_pool(place: Place, state: Dependency, timeout: float) -> ConnectionPool:
    """Makes connections to one server; it keeps none.

    They speak RESP 2: RESP 3 has pushes between the replies, which ``redis_wire`` would take for replies.
    """
    made = ConnectionPool.from_url(
        place.url,
        protocol=2,  # in time for redis-py, which prepares a pool for the pushes of RESP 3
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        credential_provider=place.credentials,
        retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionError,)),  # behind a proxy, the next may go to another
    )
    kind: type[AbstractConnection] = made.connection_class
    made.connection_class = type(f"Hardened{kind.__name__}", (_Hardened, kind), {"state": state})
    made.connection_kwargs["protocol"] = 2  # whatever the URL says
    return made


@contextlib.contextmanager
def needed() -> Iterator[None]:
    """A block that needs Redis: its ``RedisError`` becomes ``DependencyUnavailable``."""
    try:
        yield
    except RedisError as error:
        raise DependencyUnavailable("redis") from error


class _Server(Redis):
    """A server's client whose commands share one connection, and are spans of the request that sends them.

    That costs a fraction of a call through redis-py's pool. It has no transactions, which need a connection.
    """

    def __init__(self, pool: ConnectionPool, state: Dependency, timeout: float) -> None:
        super().__init__(connection_pool=pool)
        self._node = Node(pool, (), timeout, lambda _node: None)
        self._dependency = state
        self._callbacks = dict(self.response_callbacks)  # redis-py's own mapping ignores case, at each look

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        with spans.child(f"redis {args[0]}", "redis"):
            return (await self.ask([(args, options)]))[0]

    async def ask(self, commands: Sequence[_Command]) -> list[Any]:
        """The replies to commands that are sent at once, and once more if the connection is lost meanwhile.

        :raises RedisError: Redis could not be asked, or answered an error to one of them.
        """
        packed = [pack(*args[0].split(), *args[1:]) for args, _ in commands]
        replies = await self._sent(packed)
        answered(self._dependency)
        return [self._parsed(reply, args[0], options) for reply, (args, options) in zip(replies, commands, strict=True)]

    async def _sent(self, packed: Sequence[bytes]) -> list[Any]:
        for again in (True, False):
            try:
                link = self._node.link or await self._node.connect()
                if len(packed) == 1:
                    return [await link.send(packed[0])]
                return await asyncio.gather(*map(link.send, packed))
            except ScriptFailed as failure:
                if again and failure.code == "READONLY" and link.leave_demoted():
                    continue
                raise self._told(BaseParser.parse_error(str(failure))) from None  # type: ignore[no-untyped-call]
            except builtins.ConnectionError as error:
                if isinstance(error.__cause__, RedisError):  # the reason why no connection was made, which was reported
                    raise error.__cause__ from None
                if isinstance(error.__cause__, builtins.TimeoutError):
                    raise self._told(TimeoutError("no answer in time")) from error
                if not again:
                    raise ConnectionError("the connection is closed") from error
        raise AssertionError("unreachable")

    def _parsed(self, reply: Any, command: str, options: Mapping[str, Any]) -> Any:
        callback = self._callbacks.get(command)
        # "keys" is for redis-py's own cache
        return reply if callback is None else callback(reply, **{k: v for k, v in options.items() if k != "keys"})

    def _told(self, error: RedisError) -> RedisError:
        if isinstance(error, (TimeoutError, *_STATES)):
            self._dependency.failed(reason(error))
        return error

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await self._node.close()
        await super().aclose(close_connection_pool)

    def pipeline(self, transaction: bool = False, shard_hint: Any = None) -> Pipeline:
        """:raises ValueError: a transaction is asked for, which a shared connection can't have."""
        if transaction:
            raise ValueError("there are no transactions")
        return _ServerPipeline(self)


class _ServerPipeline(Pipeline):
    def __init__(self, server: _Server) -> None:
        super().__init__(server.connection_pool, server.response_callbacks, False, None)
        self._server = server

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands, self.command_stack = self.command_stack, []
        with spans.child("redis pipeline", "redis"):
            return await self._server.ask(commands)


class _Cluster(RedisCluster):
    """A cluster's client that raises ``RedisError`` for every fault, in time, with the reason that Redis gave.

    A node that can't be reached is tried once more, after a look at who holds its slots now. What a node answers is
    passed on: redis-py would repeat CLUSTERDOWN and timeouts, for seconds.
    """

    ERRORS_ALLOW_RETRY = (ConnectionError, SlotNotCoveredError)  # type: ignore[assignment]  # of four, in redis-py

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        with spans.child(f"redis {args[0]}", "redis"):
            return await _in_time(self, self._routed(args, kwargs))

    async def _routed(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        await self.initialize()  # redis-py would first choose a node, at random, and then look who holds the slot
        return await super().execute_command(*args, **kwargs)

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> ClusterPipeline:
        return _Pipeline(self, transaction)  # type: ignore[abstract]


class _Pipeline(ClusterPipeline):
    async def execute(self, *args: Any, **kwargs: Any) -> list[Any]:
        with spans.child("redis pipeline", "redis"):
            done: list[Any] = await _in_time(self.cluster_client, super().execute(*args, **kwargs))
        return done


async def _in_time(cluster: RedisCluster, call: Coroutine[Any, Any, Any]) -> Any:
    """:raises RedisError: the call failed, or took too long."""
    try:
        async with asyncio.timeout(cluster.connection_kwargs["socket_timeout"]):
            return await call
    except builtins.TimeoutError as error:
        raise TimeoutError("no answer in time") from error
    except (RuntimeError, TypeError, AttributeError) as error:
        # the loop's, as in _Hardened; redis-py's, when another command's failure closed the connection meanwhile
        *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals["__name__"].partition(".")[0] not in ("redis", "asyncio", "uvloop"):
            raise
        raise ConnectionError("the connection is closed") from error
    except RedisClusterException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, (ConnectionError, TimeoutError, *_STATES)):
            cause = cause.__cause__ or cause.__context__
        raise cause or ConnectionError(str(error)) from error


class _Hardened(AbstractConnection):
    """A connection that raises ``RedisError`` for every fault, and tells ``state``.

    Writing to a connection that was just reset is a ``RuntimeError`` of uvloop's, or from 3.12 on a ``TypeError`` of
    asyncio's (python/cpython#136234), which redis-py lets through.
    """

    state: ClassVar[Dependency]

    async def connect(self) -> None:
        if self.is_connected:  # redis-py asks for it before each command
            return
        try:
            await super().connect()  # type: ignore[no-untyped-call]
        except RedisError as error:
            self.state.failed(reason(error))
            raise
        self.state.answered()

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        try:
            await super().send_packed_command(command, check_health)
        except (RuntimeError, TypeError) as error:
            raise ConnectionError("the connection is closed") from error

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            answer = await super().read_response(*args, **kwargs)
        except RedisError as error:
            if isinstance(error, (TimeoutError, *_STATES)):
                self.state.failed(reason(error))
            raise
        answered(self.state)
        return answer


def answered(state: Dependency, *, wrote: bool = False) -> None:
    """Note an answer that is no error. It ends an outage, unless only some commands failed."""
    if state.reason is not None and (wrote or state.reason not in _SHOWN_BY_WRITES):
        state.answered()


def reason(error: RedisError) -> str:
    """One line for the log and readiness. Of an answer only its kind, since its text may quote a key."""
    if isinstance(error, AuthenticationError) and any(words in str(error) for words in _NOAUTH):
        return _ANSWERS["NOAUTH"]
    for kind, code in _STATES.items():
        if isinstance(error, kind):
            return _ANSWERS[code]
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ResponseError):
        return answer_reason(str(error).partition(" ")[0])
    return " ".join((str(error).strip() or "the connection was lost").splitlines()[0].split())


def answer_reason(code: str) -> str:
    """The state of the server that an error answer shows.

    :param code: its first word.
    """
    return _ANSWERS.get(code, f"the server answers an error ({code if code.isupper() else 'ERR'})")


async def can_write(client: Client, state: Dependency) -> None:
    """Write a key that expires, as readiness does: two tries, half a second apart.

    :raises DependencyUnavailable: neither was answered.
    """
    for attempt in (1, 2):
        try:
            async with asyncio.timeout(0.7):
                await client.set("mlpa:health", "1", ex=60)
        except (RedisError, builtins.TimeoutError) as error:
            why = reason(error) if isinstance(error, RedisError) else "no answer in time"
            state.failed(why)
            if attempt == 2:
                raise DependencyUnavailable("redis", reason=why) from error
            await asyncio.sleep(0.5)
        else:
            state.answered()
            return
