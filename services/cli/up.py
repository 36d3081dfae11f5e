"""``mlpa up``: the whole system on this machine, with nothing to install or configure first.

Everything lives in one data folder: databases, logs, keys, generated secrets. It is kept between runs.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

from services.cli.console import Console
from services.cli.supervisor import Part, RunningSystem, Supervisor
from services.local import apple, litellm, play
from services.local.files import write_private
from services.local.fxa import DESKTOP_CLIENT_ID
from services.local.litellm import LiteLLMServer
from services.local.pki import Pki
from services.local.postgres import PostgresServer
from services.local.process import Process, ProcessError, Program, answers, free_port
from services.local.valkey import ValkeyServer

HOST = "127.0.0.1"
DEFAULT_PORT_BASE = 8080
#: Each one is above the one before.
PORTS = ("gateway", "auth", "FxA", "LiteLLM", "PostgreSQL", "Valkey", "Google", "Apple")
DATABASE = "mlpa"
TEAM = "DEVELOPMNT"
BUNDLE_ID = "org.mozilla.ios.Fennec"
READY_SECONDS = 30
EXIT_INTERRUPTED = 130  # a shell's exit code for a command that Ctrl-C ended


async def up(*, demo: bool, port_base: int | None, data: Path) -> int:
    """Run the system until Ctrl-C or SIGTERM. Returns the exit code.

    A second Ctrl-C while it stops kills the remaining parts.
    """
    data = data.resolve()  # noqa: ASYNC240 - nothing else runs yet
    with Console() as console:
        try:
            with _locked(data):
                return await _run_until_signalled(LocalSystem(console, data, port_base), demo=demo)
        except ProcessError as error:
            console.error(str(error))
            return 1


async def _run_until_signalled(system: LocalSystem, *, demo: bool) -> int:
    work = asyncio.create_task(system.run(demo=demo))
    signalled = False

    def on_signal() -> None:
        nonlocal signalled
        if signalled:
            system.supervisor.hurry()
        else:
            signalled = True
            work.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal)
    try:
        await work
    except asyncio.CancelledError:
        if not signalled:
            raise
    except ExceptionGroup as group:
        raise _first(group) from None
    finally:
        system.console.heading("Stopping")
        await system.supervisor.stop()
    return 0 if system.is_up else EXIT_INTERRUPTED


def _first(group: ExceptionGroup[Exception]) -> Exception:
    """The first of the errors that ended a task group; the others are its consequences."""
    error: Exception = group
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


class LocalSystem:
    """A local system: its parts, their configuration and their order."""

    def __init__(self, console: Console, data: Path, port_base: int | None) -> None:
        self.console, self.data = console, data
        self.supervisor = Supervisor(console)
        self.is_up = False
        self._ports = _choose_ports(console, DEFAULT_PORT_BASE if port_base is None else port_base)
        self._secrets = _load_secrets(data / "secrets.json")
        self._postgres = PostgresServer(
            data / "postgres",
            self._ports["PostgreSQL"],
            durable=True,
            password=self._secrets["postgres_password"],
            log=self._log("postgres"),
        )
        self._valkey = ValkeyServer(
            data / "valkey",
            self._ports["Valkey"],
            password=self._secrets["valkey_password"],
            options={"appendonly": "yes"},
            log=self._log("valkey"),
        )
        self._litellm = LiteLLMServer(
            data / "litellm",
            self._ports["LiteLLM"],
            master_key=self._secrets["litellm_master_key"],
            venv=litellm.environment(data),
            log=self._log("litellm"),
        )
        self.running = self._describe()

    async def run(self, *, demo: bool) -> None:
        """Start all parts, show the demonstration, and keep the parts alive until cancelled.

        :raises ExceptionGroup: of ProcessError, when a part could not be started.
        """
        began = time.monotonic()
        self.console.heading("Starting")
        self._prepare()
        async with asyncio.TaskGroup() as group:  # LiteLLM takes longest, and needs none of the others
            group.create_task(self._start_litellm())
            group.create_task(self._start_auth())
        await self._start_service("gateway", 5)
        await self._all_ready()
        self.is_up = True
        self.running.save()
        try:
            self.console.note(f"All is ready after {time.monotonic() - began:.0f} s.")
            async with asyncio.TaskGroup() as group:
                group.create_task(self.supervisor.watch())
                if demo:
                    from services.cli.demo import demonstrate  # takes half a second, for the openai client

                    await demonstrate(self.running, self.console)
                self._summarise()
        finally:
            self.running.forget()

    def _prepare(self) -> None:
        for name in ("keys", "fxa-keys"):
            (self.data / name).mkdir(exist_ok=True, mode=0o700)
        folder = self.data / "app-attest"
        folder.mkdir(exist_ok=True, mode=0o700)
        pki, root = folder / "pki.json", folder / "root.pem"
        if not pki.exists():
            write_private(pki, Pki.create().to_json())
        root.write_bytes(Pki.from_json(pki.read_text()).root_pem)
        for log in (self.data / "logs").glob("*.log"):
            log.replace(log.with_suffix(".previous"))

    async def _start_litellm(self) -> None:
        folder = litellm.environment(self.data)
        if not litellm.installed(folder):
            log = self._log("litellm-install")
            with self.console.step("LiteLLM", "installing") as step:
                await self.supervisor.run(litellm.installer(folder), log, step, lambda: litellm.progress(log))
                step.done(f"installed in {folder.name}/")
        self._litellm.initialise()
        await self._start("LiteLLM", 2, self._litellm.process, self._litellm.ready, timeout=120)

    async def _start_auth(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._start_postgres())
            group.create_task(self._start_valkey())
            for name, module, path, *options in (
                ("FxA", "fxa", "/v1/jwks", "--keys=fxa-keys", f"--events-url={self.running.auth_url}/fxa/events"),
                ("Google", "play", "/", "--folder=google"),
                ("Apple", "apple", "/", "--folder=apple", "--pki=app-attest/pki.json", f"--team={TEAM}"),
            ):
                group.create_task(self._start_stand_in(name, module, path, *options))
        await self._start_service("auth", 4)

    async def _start_postgres(self) -> None:
        await asyncio.to_thread(self._postgres.initialise)
        await self._start("PostgreSQL", 0, self._postgres.process, self._postgres.ready)
        with self.console.step("migrations", "running") as step:
            await asyncio.to_thread(self._postgres.ensure_database, DATABASE)
            await self.supervisor.run(self._mlpa("migrate"), self._log("migrate"), step)
            step.done("schema is up to date")

    async def _start_valkey(self) -> None:
        self._valkey.initialise()
        await self._start("Valkey", 1, self._valkey.process, self._valkey.ready)

    async def _start_stand_in(self, name: str, module: str, path: str, *options: str) -> None:
        port = self._ports[name]
        argv = (sys.executable, "-P", "-m", f"services.local.{module}", "--port", str(port), *options)
        process = Process(Program(f"{name} stand-in", argv, cwd=self.data), self._log(name.lower()))
        await self._start(name, 3, process, lambda: answers(f"http://{HOST}:{port}{path}"))

    async def _start_service(self, name: str, rank: int) -> None:
        process = Process(self._mlpa(name), self._log(name))
        url = f"http://{HOST}:{self._ports[name]}/health/readiness"
        await self._start(name, rank, process, lambda: answers(url))

    async def _start(
        self, name: str, rank: int, process: Process, ready: Callable[[], bool], timeout: float = 60
    ) -> None:
        await self.supervisor.start(
            Part(name, rank, process, ready, address=f"{HOST}:{self._ports[name]}", timeout=timeout)
        )

    async def _all_ready(self) -> None:
        """Wait until both services see all of their dependencies."""
        with self.console.step("readiness", "checking") as step:
            for url in (self.running.auth_url, self.running.gateway_url):
                while failed := await asyncio.to_thread(_failed_checks, f"{url}/health/readiness"):
                    if step.seconds > READY_SECONDS:
                        raise ProcessError(f"{url} is not ready: {', '.join(failed)} failed")
                    step.update(f"waiting for {', '.join(failed)}")
                    await asyncio.sleep(0.2)
            step.done("every check is ok")

    def _summarise(self) -> None:
        running = self.running
        self.console.heading("Running until Ctrl-C")
        for name, text in {
            "gateway": f"{running.gateway_url}/v1   docs /api/docs, metrics /metrics",
            "auth": f"{running.auth_url}   docs /api/docs, metrics /metrics",
            "console": f"{running.auth_url}/admin   key {running.admin_key}",
            "data, logs": f"{_relative(self.data)}/, {_relative(self.data)}/logs/",
        }.items():
            self.console.line("▸", name, text, style="cyan")

    def _describe(self) -> RunningSystem:
        urls = {name: f"http://{HOST}:{self._ports[name]}" for name in PORTS}
        database = self._postgres.url(DATABASE)
        settings = {
            "MLPA_DEBUG": "true",
            "HOST": HOST,
            "PORT": str(self._ports["gateway"]),
            "AUTH_PORT": str(self._ports["auth"]),
            "GATEWAY_URL": urls["gateway"],
            "MLPA_ISSUER": urls["auth"],
            "MLPA_SIGNING_KEYS_DIR": str(self.data / "keys"),
            "MLPA_ADMIN_KEY": self._secrets["admin_key"],
            "CHALLENGE_SECRET": self._secrets["challenge_secret"],
            "FXA_CACHE_SECRET": self._secrets["fxa_cache_secret"],
            "ERASURE_SECRET": self._secrets["erasure_secret"],
            "DATABASE_URL": database,
            "REDIS_URL": self._valkey.url,
            "LITELLM_API_BASE": self._litellm.url,
            "MASTER_KEY": self._litellm.master_key,
            "MLPA_VIRTUAL_KEY": self._litellm.master_key,  # without a database LiteLLM has no other keys
            "LITELLM_PROVISION_USERS": "false",
            "FXA_BASE_URL": f"{urls['FxA']}/v1",
            "FXA_ISSUER": urls["FxA"],
            "FXA_CLIENT_IDS": DESKTOP_CLIENT_ID,
            "PLAY_PACKAGES": play.PACKAGE,
            "PLAY_CERTIFICATES": play.CERTIFICATE,
            "PLAY_CREDENTIALS": str(self.data / "google" / play.KEY_FILE),
            "PLAY_BASE_URL": urls["Google"],
            "APP_ATTEST_ROOT_CA": str(self.data / "app-attest" / "root.pem"),
            "APPLE_RECEIPT_KEY": str(self.data / "apple" / apple.KEY_FILE),
            "APPLE_RECEIPT_KEY_ID": apple.KEY_ID,
            "APPLE_RECEIPT_BASE_URL": urls["Apple"],
            "APPLE_RECEIPT_ROOT_CA": str(self.data / "app-attest" / "root.pem"),
            "APP_DEVELOPMENT_TEAM": TEAM,
            "APP_ATTEST_BUNDLE_IDS": BUNDLE_ID,
            "FIREFOX_CLIENTS": "true",
            "EXCHANGE_KEY": self._secrets["exchange_key"],
            "DRAIN_SECONDS": "5",
        }
        return RunningSystem(
            gateway_url=urls["gateway"],
            auth_url=urls["auth"],
            fxa_url=urls["FxA"],
            database_url=database,
            redis_url=self._valkey.url,
            data=self.data,
            admin_key=self._secrets["admin_key"],
            environment=settings,
        )

    def _mlpa(self, command: str) -> Program:
        """One of our own commands. It runs in the data folder, where no .env changes its settings."""
        argv = (sys.executable, "-P", "-m", "services.cli.main", command)
        return Program(f"mlpa {command}", argv, env={**os.environ, **self.running.environment}, cwd=self.data)

    def _log(self, name: str) -> Path:
        return self.data / "logs" / f"{name}.log"


@contextmanager
def _locked(data: Path) -> Iterator[None]:
    """Make the data folder and lock it.

    :raises ProcessError: another run has locked it, or nothing can be written there.
    """
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(data / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ProcessError(
            f"{_relative(data)}: {error.strerror}; give this run another folder with --data DIR"
        ) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ProcessError(f"another `mlpa up` runs on {_relative(data)}/; give this one --data DIR") from None
        yield
    finally:
        os.close(lock)


def _choose_ports(console: Console, base: int) -> dict[str, int]:
    """The usual port of each part, or a free one where that is taken."""
    ports = {}
    for number, name in enumerate(PORTS, start=base):
        ports[name] = number if _is_free(number) else free_port()
        if ports[name] != number:
            console.warn(name, f"port {number} is taken, uses {ports[name]}")
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections that linger don't matter
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _load_secrets(path: Path) -> dict[str, str]:
    """The generated secrets of this data folder; missing ones are made."""
    known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    made = {
        "litellm_master_key": f"sk-{secrets.token_hex(24)}",
        "postgres_password": secrets.token_hex(16),
        "valkey_password": secrets.token_hex(16),
        "admin_key": secrets.token_urlsafe(18),
        "challenge_secret": secrets.token_hex(32),
        "fxa_cache_secret": secrets.token_hex(32),
        "erasure_secret": secrets.token_hex(32),
        "exchange_key": secrets.token_hex(32),
    }
    if made.keys() - known.keys():
        known = made | known
        write_private(path, json.dumps(known, indent=1))
    return known


def _failed_checks(url: str) -> list[str]:
    """Names of the failed checks in a readiness body; the service's own address if there is no body."""
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=3) as response:
            body = json.load(response)
    except HTTPError as error:
        body = json.loads(error.read() or b"{}")
    except OSError:
        return [url]
    checks: Mapping[str, Mapping[str, Any]] = body.get("checks", {})
    return [name for name, check in checks.items() if check.get("status") != "ok"]


def _relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
