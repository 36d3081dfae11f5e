"""SIGTERM ends every command at any moment, as the first process of a container too, and whatever its log does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from services.cli.main import TERMINATED
from services.local.process import answers, free_port
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[3]
FULL = bool(os.environ.get("MLPA_TEST_FULL"))
#: Runs a command as the first process of its own PID namespace.
FIRST = ["unshare", "--pid", "--fork", "--kill-child"]
COMMANDS = {
    "auth": ("auth",),
    "gateway": ("gateway",),
    "workers": ("gateway", "--workers", "2"),
    "up": ("up", "--no-demo"),
    "migrate": ("migrate",),
}


def unshared() -> bool:
    try:
        return subprocess.run([*FIRST, "true"], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


AS_FIRST = unshared()


class Running:
    """A command, and the process that it runs in."""

    def __init__(self, child: subprocess.Popen[bytes], port: int) -> None:
        self._child, self.port = child, port
        self.pid = child.pid

    def find_first(self) -> None:
        """For a command that runs as the first process."""
        children = Path(f"/proc/{self._child.pid}/task/{self._child.pid}/children")
        wait_until(lambda: bool(children.read_text().split()))
        self.pid = int(children.read_text().split()[0])

    def catches(self) -> bool:
        """Whether it has a handler for SIGTERM."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (signal.SIGTERM - 1) & 1)

    def is_python(self) -> bool:
        return "python" in Path(f"/proc/{self.pid}/maps").read_text()

    def terminate(self) -> int:
        """The exit code after a SIGTERM."""
        os.kill(self.pid, signal.SIGTERM)
        return self._child.wait(15)

    def get(self, path: str) -> bytes:
        with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as response:
            return bytes(response.read())

    def wait_ready(self) -> None:
        wait_until(lambda: answers(f"http://127.0.0.1:{self.port}/health/liveness"))


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    children: list[subprocess.Popen[bytes]] = []

    def begin(*arguments: str, prefix: list[str] | None = None, stdout: int = subprocess.DEVNULL) -> Running:
        port = free_port()
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "MLPA_DEBUG": "true",
            "PORT": str(port),
            "AUTH_PORT": str(port),
            "DATABASE_URL": f"postgresql://a:b@127.0.0.1:{free_port()}/c",
            "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
            "MLPA_SIGNING_KEYS_DIR": str(tmp_path / "keys"),
        }
        argv = [*(prefix or []), sys.executable, "-P", "-m", "services.cli.main", *arguments]
        child = subprocess.Popen(argv, env=environment, cwd=tmp_path, stdout=stdout, stderr=subprocess.DEVNULL)
        children.append(child)
        return Running(child, port)

    yield begin
    for child in children:
        child.kill()
        child.wait()


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_signals_come_before_the_imports(start: Start, arguments: tuple[str, ...]) -> None:
    running = start(*arguments, prefix=FIRST if AS_FIRST else None)
    if AS_FIRST:
        running.find_first()
    wait_until(running.catches)
    loaded = Path(f"/proc/{running.pid}/maps").read_text()
    assert "_http_parser" not in loaded
    assert "cryptography" not in loaded
    assert running.terminate() == TERMINATED


@pytest.mark.skipif(not AS_FIRST, reason="may not make a PID namespace")
@pytest.mark.parametrize("after", [0.1, 0.5, 1.0, 2.0] if FULL else [0.3])
def test_the_first_process_of_a_container_ends_at_any_moment(start: Start, after: float) -> None:
    running = start("gateway", prefix=FIRST)
    running.find_first()
    wait_until(running.catches)
    time.sleep(after)
    assert running.terminate() in (0, TERMINATED)


def test_workers_that_die_while_others_are_awaited_disturb_no_end(start: Start) -> None:
    """Both die young: the second while a pause follows the first, so that it lies there dead when the signal comes."""
    running = start("gateway", "--workers", "2")
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    wait_until(lambda: len(children.read_text().split()) == 2)
    both = [int(pid) for pid in children.read_text().split()]
    for pid in both:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(children.read_text().split()) == 1)
    assert running.terminate() == 128 + signal.SIGKILL


def test_a_service_that_has_served_ends_well(start: Start) -> None:
    running = start("gateway")
    running.wait_ready()
    assert running.terminate() == 0


def gone() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def full() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def stuck() -> int:
    """A pipe that nobody reads, filled to its last byte."""
    _, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
        return writer


#: Both services log in the same way: all pairs of them and of outputs are for full runs.
PAIRS = [("auth", gone), ("gateway", full), ("gateway", stuck)]
if FULL:
    PAIRS = [(command, output) for command in ("auth", "gateway") for output in (gone, full, stuck)]


@pytest.mark.parametrize(("command", "output"), PAIRS)
def test_a_log_that_cannot_be_written_disturbs_neither_requests_nor_the_end(
    start: Start, command: str, output: Callable[[], int]
) -> None:
    descriptor = output()
    running = start(command, stdout=descriptor)
    os.close(descriptor)
    running.wait_ready()
    for _ in range(20):
        assert b"alive" in running.get("/health/liveness")
    lost = float(running.get("/metrics").partition(b"\nlog_lines_lost_total ")[2].split()[0])
    assert (lost > 20) is (output is not stuck)  # what waits for a slow reader is not lost yet
    assert running.terminate() == 0
