"""The whole system as real processes on free ports: what a deployment runs, beside doubles of LiteLLM and FxA.

Everything logs at DEBUG into files. Every secret is a canary: a text that stands nowhere else.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from services.auth.tokens.key_ring import create_key
from services.local.fxa_keys import KeyRing, SigningKey
from services.local.pki import Pki
from services.local.postgres import PostgresServer
from services.local.process import Process, ProcessError, Program, answers, free_port
from services.local.valkey import ValkeyServer
from shared.stores import migrate
from tests.support.service_types import toml
from tests.support.sql import sql

HOST = "127.0.0.1"
DATABASE = "mlpa"
TEMPLATE = "mlpa_template"
TEAM = "SYSTEMTEAM"
BUNDLE_ID = "org.mozilla.system"
ROOT = Path(__file__).parents[2]

#: Values of the secrets, by setting. None of them may ever be seen outside of a process' memory.
SECRETS = {
    "CHALLENGE_SECRET": "canary-challenge-secret-5b1f0c-4be1c09d27",
    "FXA_CACHE_SECRET": "canary-fxa-cache-secret-77ad02-4be1c09d27",
    "ERASURE_SECRET": "canary-erasure-secret-3e90bb-4be1c09d27",
    "MASTER_KEY": "sk-canary-master-key-90cc4e",
    "MLPA_VIRTUAL_KEY": "sk-canary-virtual-key-1d83fa",
    "MLPA_ADMIN_KEY": "canary-admin-key-c402b7",
    "MLPA_UI_ACCESS_KEY": "canary-viewer-key-e11a96",
    "LOG_USER_SECRET": "canary-log-user-secret-08fd3b-4be1c09d27",
}
DATABASE_PASSWORD = "canary-database-password-3ce9d1"
REDIS_PASSWORD = "canary-redis-password-a6f250"

_PLENTY = {"max_budget": "1000", "rpm": 100_000, "tpm": 100_000_000, "credentials": ["fxa", "app_attest"]}
_SEARCH = {"search_tool": "exa-search", "search_cost": "0.005"}
SERVICE_TYPES = (
    toml("ai", **_PLENTY, **_SEARCH, purposes=["chat"])
    + toml("search", max_budget="0.02", rpm=1000, **_SEARCH)
    + toml("vectors", max_budget="0.0001", rpm=1000)
    + toml("s2s", **_PLENTY)
)


@dataclass(slots=True)
class Part:
    """A process, and how to tell that it serves."""

    name: str
    process: Process
    ready: Callable[[], bool]

    def kill(self) -> None:
        self.process.kill()

    def pause(self) -> None:
        self.process.pause()

    def resume(self) -> None:
        self.process.resume()

    def start(self) -> None:
        """Returns at once."""
        self.process.start()

    async def wait_ready(self, seconds: float = 60) -> None:
        """:raises ProcessError: it died, or is not ready in time; with its log's end."""
        deadline = time.monotonic() + seconds
        while not await asyncio.to_thread(self.ready):
            if not self.process.running:
                raise ProcessError(f"{self.name} ended ({self.process.exit_reason}){self.process.tail()}")
            if time.monotonic() > deadline:
                raise ProcessError(f"{self.name} was not ready in {seconds:g} s{self.process.tail()}")
            await asyncio.sleep(0.02)

    async def restart(self) -> None:
        self.process.kill()
        self.process.start()
        await self.wait_ready()


class System:
    """One whole system in a folder.

    :param template: a data folder of PostgreSQL made by ``make_template``.
    :param ports: where a part is reached, when that is not where it listens: the gate before it. Names as in ``parts``.
    :param environment: more settings of the services; they win.
    :param listens: where a part listens, when not on any free port.
    :param own: settings of one service alone, by its command; they win over all.
    :param trees: checkouts that a part runs from, by name, when not this one.
    :param valkey_options: more of its configuration.
    """

    def __init__(
        self,
        folder: Path,
        template: Path,
        *,
        auths: int = 1,
        gateways: int = 1,
        ports: Mapping[str, int] | None = None,
        environment: Mapping[str, str] | None = None,
        listens: Mapping[str, int] | None = None,
        own: Mapping[str, Mapping[str, str]] | None = None,
        trees: Mapping[str, Path] | None = None,
        valkey_options: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self._template = folder, template
        self._own = own or {}
        self._trees = trees or {}
        self.auths = tuple(f"auth-{number}" for number in range(1, auths + 1))
        self.gateways = tuple(f"gateway-{number}" for number in range(1, gateways + 1))
        names = ("postgres", "valkey", "litellm", "fxa", *self.auths, *self.gateways)
        self.listens = {**{name: free_port() for name in names}, **(listens or {})}
        self.ports = {**self.listens, **(ports or {})}
        self.postgres = PostgresServer(
            folder / "postgres",
            self.listens["postgres"],
            durable=False,
            password=DATABASE_PASSWORD,
            log=self._log("postgres"),
        )
        self.valkey = ValkeyServer(
            folder / "valkey",
            self.listens["valkey"],
            password=REDIS_PASSWORD,
            options={"appendonly": "yes", **(valkey_options or {})},
            log=self._log("valkey"),
        )
        self.pki = Pki.create()
        self.environment = {**self._settings(), **(environment or {})}
        self.parts = self._parts()

    @property
    def issuer(self) -> str:
        return self.environment["MLPA_ISSUER"]

    def url(self, name: str) -> str:
        """Where clients reach a part."""
        return f"http://{HOST}:{self.ports[name]}"

    @property
    def auth_url(self) -> str:
        return self.url(self.auths[0])

    @property
    def gateway_url(self) -> str:
        return self.url(self.gateways[0])

    async def start(self) -> None:
        """All at once: every service starts without its dependencies, and finds them when they are there."""
        await asyncio.to_thread(self._prepare)
        for part in self.parts.values():
            part.start()
        try:
            await asyncio.gather(*(part.wait_ready() for part in self.parts.values()))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kills everything, services first."""
        for part in reversed(self.parts.values()):
            part.kill()

    def sql(self, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Rows of a statement, past every gate."""
        return sql(self.postgres.url(DATABASE), statement, **parameters)

    def logs(self) -> dict[str, str]:
        return {path.stem: path.read_text(errors="replace") for path in sorted((self.folder / "logs").glob("*.log"))}

    def program(self, *arguments: str, environment: Mapping[str, str] | None = None, tree: Path = ROOT) -> Program:
        """The command ``mlpa`` of a checkout, configured for this system."""
        argv = (sys.executable, "-P", "-m", "services.cli.main", *arguments)
        home = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        given = {**home, "PYTHONPATH": str(tree), **self.environment, **(environment or {})}
        return Program(f"mlpa {arguments[0]}", argv, env=given, cwd=self.folder)

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", str(self._template), str(self.folder / "postgres")], check=True)
        self.valkey.initialise()
        (self.folder / "root.pem").write_bytes(self.pki.root_pem)
        (self.folder / "service_types.toml").write_text(SERVICE_TYPES)
        create_key(self.folder / "keys", activate_at=time.time())
        fxa_keys(self.folder / "fxa-keys").save()

    def _settings(self) -> dict[str, str]:
        port = self.ports
        return {
            **SECRETS,
            "LOG_LEVEL": "DEBUG",
            "LOG_FORMAT": "json",
            "MLPA_ISSUER": f"http://{HOST}:{port[self.auths[0]]}",
            "MLPA_SIGNING_KEYS_DIR": str(self.folder / "keys"),
            "DATABASE_URL": f"postgresql://mlpa:{DATABASE_PASSWORD}@{HOST}:{port['postgres']}/{DATABASE}",
            "REDIS_URL": f"redis://:{REDIS_PASSWORD}@{HOST}:{port['valkey']}/0",
            "LITELLM_API_BASE": f"http://{HOST}:{port['litellm']}",
            "LITELLM_PROVISION_USERS": "false",
            "LITELLM_HEALTH_SECONDS": "1",
            "FXA_BASE_URL": f"http://{HOST}:{port['fxa']}/v1",
            "FXA_ISSUER": f"http://{HOST}:{port['fxa']}",
            "SERVICE_TYPES": str(self.folder / "service_types.toml"),
            "APP_ATTEST_ROOT_CA": str(self.folder / "root.pem"),
            "APP_DEVELOPMENT_TEAM": TEAM,
            "APP_ATTEST_BUNDLE_IDS": BUNDLE_ID,
            "EXCHANGE_LIMIT_PER_IDENTITY": "1000000",
            "EXCHANGE_LIMIT_PER_SOURCE": "1000000",
            "CHALLENGE_LIMIT_PER_SOURCE": "1000000",
            "ENROLL_LIMIT_PER_SOURCE": "1000000",
            "SIGN_IN_LIMIT_PER_SOURCE": "1000000",
            "DRAIN_SECONDS": "5",
        }

    def _parts(self) -> dict[str, Part]:
        fxa = ("-m", "services.local.fxa", "--port", str(self.listens["fxa"]), "--keys", str(self.folder / "fxa-keys"))
        issuer = ("--issuer", self.environment["FXA_ISSUER"])
        double = ("-m", "tests.doubles.litellm", "--port", str(self.listens["litellm"]))
        parts = [
            Part("postgres", self.postgres.process, self.postgres.ready),
            Part("valkey", self.valkey.process, self.valkey.ready),
            self._python("litellm", *double, path="/health/liveliness"),
            self._python("fxa", *fxa, *issuer, path="/__lbheartbeat__"),
            *(self._service("auth", name) for name in self.auths),
            *(self._service("gateway", name) for name in self.gateways),
        ]
        return {part.name: part for part in parts}

    def _python(self, name: str, *arguments: str, path: str) -> Part:
        program = Program(name, (sys.executable, "-P", *arguments), env={**os.environ, "PYTHONPATH": str(ROOT)})
        return Part(name, Process(program, self._log(name)), self._answering(name, path))

    def _service(self, command: str, name: str) -> Part:
        variable = "PORT" if command == "gateway" else "AUTH_PORT"
        port = {variable: str(self.listens[name])}
        program = self.program(
            command, environment={**port, **self._own.get(command, {})}, tree=self._trees.get(name, ROOT)
        )
        return Part(name, Process(program, self._log(name)), self._answering(name, "/health/readiness"))

    def _answering(self, name: str, path: str) -> Callable[[], bool]:
        url = f"http://{HOST}:{self.listens[name]}{path}"
        return lambda: answers(url, 1)

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"


def fxa_keys(folder: Path) -> KeyRing:
    """The keys of the FxA stand-in of every system: to make new ones takes a second."""
    return KeyRing(_signing_keys(), folder)


@cache
def _signing_keys() -> list[SigningKey]:
    return [SigningKey.generate() for _ in range(3)]


@contextmanager
def running_system(folder: Path, template: Path, **options: Any) -> Iterator[System]:
    """A system from start to stop, for fixtures that many tests share; ``options`` as of ``System``."""
    whole = System(folder, template, **options)
    asyncio.run(whole.start())
    try:
        yield whole
    finally:
        whole.stop()


def make_template(folder: Path) -> Path:
    """A data folder of PostgreSQL, the newest schema in ``DATABASE`` and, for a restart with nothing, ``TEMPLATE``."""
    server = PostgresServer(folder / "template", free_port(), durable=False, password=DATABASE_PASSWORD)
    with server:
        migrate.upgrade(server.create_database(TEMPLATE))
        server.create_database(DATABASE, template=TEMPLATE)
    return server.data


def remove(folders: Sequence[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
