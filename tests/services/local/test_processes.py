"""The embedded servers start fast, fail and hang on demand, come back, and never outlive their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from services.local.postgres import PostgresServer
from services.local.process import Process, ProcessError, Program, answers, free_port
from services.local.valkey import ValkeyServer
from tests.support.valkey_cluster import CLUSTER_SLOTS, ValkeyCluster
from tests.support.waiting import wait_until

PYTHON = sys.executable


def query(url: str, statement: str) -> object:
    engine = create_engine(
        url.replace("postgresql:", "postgresql+psycopg2:"), poolclass=NullPool, connect_args={"connect_timeout": 2}
    )
    with engine.begin() as connection:
        result = connection.execute(text(statement))
        return result.scalar() if result.returns_rows else None


def gone(pid: int) -> bool:
    """No such process, or only its remains."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


class TestPostgres:
    def test_keeps_what_was_committed_when_it_is_killed(self, own_postgres: PostgresServer) -> None:
        url = own_postgres.create_database("kept")
        query(url, "create table t as select 7 as n")
        own_postgres.kill()
        with pytest.raises(OperationalError):
            query(url, "select 1")
        own_postgres.start()
        assert query(url, "select n from t") == 7

    def test_a_paused_one_hangs_and_goes_on(self, own_postgres: PostgresServer) -> None:
        own_postgres.pause()
        with pytest.raises(OperationalError, match="timeout"):
            query(own_postgres.url(), "select 1")
        own_postgres.resume()
        assert query(own_postgres.url(), "select 1") == 1

    def test_a_copied_database_has_the_tables_of_its_template(self, postgres_server: PostgresServer) -> None:
        query(postgres_server.create_database("template"), "create table t as select 7 as n")
        copy = postgres_server.create_database("copy", template="template")
        assert query(copy, "select n from t") == 7
        assert postgres_server.ensure_database("copy") == copy
        for name in ("copy", "copy", "template"):
            postgres_server.drop_database(name)
        with pytest.raises(OperationalError, match="does not exist"):
            query(copy, "select 1")

    def test_it_makes_its_data_folder_after_an_interrupted_initdb_and_a_password_is_asked_for(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / ".initdb-left-over" / "data").mkdir(parents=True)
        (tmp_path / "data").mkdir()
        with PostgresServer(tmp_path / "data", free_port(), durable=False, password="a:/@b") as server:
            assert query(server.url(), "select 1") == 1
            with pytest.raises(OperationalError, match="password"):
                query(f"postgresql://mlpa@127.0.0.1:{server.port}/postgres", "select 1")

    def test_a_taken_port_is_told_with_the_servers_own_words(
        self, postgres_server: PostgresServer, postgres_data: Path, tmp_path: Path
    ) -> None:
        subprocess.run(["cp", "-a", postgres_data, tmp_path / "second"], check=True)
        second = PostgresServer(tmp_path / "second", postgres_server.port, durable=False)
        with pytest.raises(ProcessError, match="could not bind"):
            second.start()

    def test_never_runs_as_root(self, postgres_server: PostgresServer) -> None:
        assert Path(f"/proc/{postgres_server.process.pid}").stat().st_uid != 0


class TestValkey:
    def test_forgets_without_persistence_and_keeps_with_it(self, tmp_path: Path) -> None:
        with (
            ValkeyServer(tmp_path / "forgets", free_port()) as forgets,
            ValkeyServer(
                tmp_path / "keeps", free_port(), options={"appendonly": "yes", "appendfsync": "always"}
            ) as keeps,
        ):
            for server, expected in ((forgets, None), (keeps, b"v")):
                with server.client() as client:
                    client.set("k", "v")
                server.kill()
                assert not server.ready()
                server.start()
                with server.client() as client:
                    assert client.get("k") == expected

    def test_refuses_writes_instead_of_evicting(self, own_valkey: ValkeyServer) -> None:
        with own_valkey.client() as client:
            client.set("first", "v")
            client.config_set("maxmemory", 1)
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                client.set("second", "v")
            assert client.exists("first")

    def test_a_password_is_asked_for(self, tmp_path: Path) -> None:
        with ValkeyServer(tmp_path / "data", free_port(), password="secret") as server:
            with server.client() as client:
                assert client.ping()
            stranger = ValkeyServer(tmp_path / "other", server.port)
            with pytest.raises(redis.AuthenticationError), stranger.client() as client:
                client.ping()

    def test_a_paused_one_hangs_and_goes_on(self, own_valkey: ValkeyServer) -> None:
        own_valkey.pause()
        with pytest.raises(redis.TimeoutError), own_valkey.client(timeout=0.2) as client:
            client.ping()
        own_valkey.resume()
        assert own_valkey.ready()

    def test_a_cluster_of_three_holds_all_slots(self, tmp_path: Path) -> None:
        with ValkeyCluster(tmp_path) as cluster, cluster.nodes[0].client() as client:
            info = str(client.execute_command("CLUSTER", "INFO"))
            assert f"cluster_slots_ok:{CLUSTER_SLOTS}" in info


class TestFixtures:
    def test_the_database_of_a_test_has_the_newest_schema(self, postgres_url: str) -> None:
        assert query(postgres_url, "select count(*) from devices") == 0
        query(postgres_url, "insert into identities (identity) values ('left by a test')")

    def test_and_nothing_of_another_test(self, postgres_url: str, redis_url: str) -> None:
        assert query(postgres_url, "select count(*) from identities") == 0
        with redis.Redis.from_url(redis_url) as client:
            assert client.dbsize() == 0
            client.set("left by", "a test")

    def test_nor_does_valkey(self, redis_url: str) -> None:
        with redis.Redis.from_url(redis_url) as client:
            assert client.dbsize() == 0


class TestProcess:
    def process(self, tmp_path: Path, code: str) -> Process:
        return Process(Program("test", (PYTHON, "-c", code)), tmp_path / "log")

    def test_tells_how_it_ended_and_the_end_of_its_log(self, tmp_path: Path) -> None:
        process = self.process(tmp_path, "print('first'); print('last words'); raise SystemExit(3)")
        process.start()
        with pytest.raises(ProcessError, match=r"ended \(exit code 3\)\n  \| first\n  \| last words"):
            process.wait_ready(lambda: False)

    def test_a_program_that_does_not_exist_is_told(self, tmp_path: Path) -> None:
        process = Process(Program("test", ("/does/not/exist",)), tmp_path / "log")
        process.start()
        with pytest.raises(ProcessError, match="cannot run /does/not/exist: No such file"):
            process.wait_ready(lambda: False)

    def test_one_that_ignores_the_signal_is_killed(self, tmp_path: Path) -> None:
        ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
        process = self.process(tmp_path, f"{ignore}; print('up', flush=True); time.sleep(60)")
        process.start()
        process.wait_ready(lambda: "up" in process.tail())
        process.stop(timeout=0.1)
        assert process.exit_reason == "killed by SIGKILL"

    def test_its_log_is_private(self, tmp_path: Path) -> None:
        process = self.process(tmp_path, "")
        process.start()
        assert process.wait(10)
        assert process.log.stat().st_mode & 0o077 == 0

    def test_can_be_stopped_while_it_is_paused(self, tmp_path: Path) -> None:
        process = self.process(tmp_path, "import time; time.sleep(60)")
        process.start()
        process.pause()
        process.stop()
        assert process.exit_reason == "killed by SIGTERM"


PARENT = """
import sys, time
from pathlib import Path
from services.local.postgres import PostgresServer
from services.local.process import free_port
from services.local.valkey import ValkeyServer

folder = Path(sys.argv[1])
servers = [PostgresServer(folder / "pg", free_port(), durable=False), ValkeyServer(folder / "vk", free_port())]
for server in servers:
    server.start()
    if "pause" in sys.argv:
        server.pause()
print(*(server.process._child.pid for server in servers), flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
@pytest.mark.parametrize("state", ["running", "pause"])
def test_nothing_survives_a_parent_that_is_killed(tmp_path: Path, state: str) -> None:
    """Also not when the children hang: the pause ends with the process that asked for it."""
    with subprocess.Popen([PYTHON, "-c", PARENT, tmp_path, state], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        family = [int(path.parts[2]) for path in Path("/proc").glob("[0-9]*/stat") if _descends(path, pids)]
        assert len(pids) == 2
        assert len(family) > 4
        os.kill(parent.pid, signal.SIGKILL)
    wait_until(lambda: all(gone(pid) for pid in family))


def _descends(stat: Path, pids: list[int]) -> bool:
    """Whether a process is one of ``pids`` or a child of one."""
    try:
        parent = int(stat.read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return False
    return parent in pids or int(stat.parts[2]) in pids


def test_only_a_200_is_an_answer(unused_port: int) -> None:
    assert not answers(f"http://127.0.0.1:{unused_port}/")


def test_a_process_is_given_no_port_twice() -> None:
    ports = [free_port() for _ in range(1000)]
    assert len(set(ports)) == len(ports)
