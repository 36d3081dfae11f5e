"""Log lines: the parts of an error that they have, and those that they never have."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from shared.service.settings import Settings
from shared.telemetry import logs

#: Errors as they come: of our code, of a library's, of the event loop. Each one's words quote what nobody may read.
PROGRAM = """
import asyncio, logging
from shared.telemetry import logs

logs.configure(form="json", level="DEBUG")
canary = "-".join(["canary", "4b81ce"])

def fail():
    try:
        int(canary)
    except ValueError as error:
        raise RuntimeError(canary) from error

try:
    fail()
except RuntimeError:
    logs.logger("test").exception("of ours")
    logging.getLogger("library").exception("of a library")
try:
    raise ConnectionRefusedError(111, "Connection refused", canary)
except OSError:
    logs.logger("test").exception("of the system")

async def main():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(logs.loop_error)
    loop.call_soon(int, canary)
    task = asyncio.create_task(asyncio.to_thread(fail))
    await asyncio.wait([task])
    del task

asyncio.run(main())
selfish = RuntimeError(canary)
try:
    raise selfish from selfish
except RuntimeError:
    logs.logger("test").exception("its own cause")
"""


def lines() -> list[dict[str, Any]]:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert "canary-4b81ce" not in done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_an_error_is_logged_by_its_kind_and_stack_without_its_words() -> None:
    ours, library, system, callback, task, own = lines()
    for line in (ours, library):
        first, _, second = line["exception"].partition("which led to")
        assert first.strip().endswith("builtins.ValueError")
        assert second.endswith("builtins.RuntimeError")
        assert "in fail" in second
    assert system["exception"].endswith("builtins.ConnectionRefusedError: Connection refused")
    assert (callback["said"], task["said"]) == ("Exception in callback", "Task exception was never retrieved")
    assert callback["exception"].endswith("builtins.ValueError")
    assert task["exception"].endswith("builtins.RuntimeError")
    assert own["exception"].endswith("builtins.RuntimeError")


#: A start that fails, with words that quote what nobody may read.
FAILING = """
from shared.telemetry import logs

logs.configure(form="json", level="ERROR")
canary = "-".join(["canary", "4b81ce"])
try:
    int(canary)
except ValueError as error:
    raise RuntimeError(canary) from error
"""


def test_an_error_that_nobody_catches_ends_the_process_without_its_words() -> None:
    done = subprocess.run([sys.executable, "-c", FAILING], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "canary-4b81ce" not in done.stdout + done.stderr
    line = json.loads(done.stdout)
    assert line["event"] == "uncaught_error"
    assert line["exception"].endswith("builtins.RuntimeError")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("ERROR:  canceling statement due to statement timeout\nSTATEMENT: select canary", "other"),
        ("Exception in callback canary('x')", "Exception in callback"),
        ("Task exception was never retrieved", "Task exception was never retrieved"),
        (None, "other"),
    ],
)
def test_of_the_event_loops_messages_only_known_words_are_logged(
    capsys: pytest.CaptureFixture[str], message: str | None, said: str
) -> None:
    loop = asyncio.new_event_loop()
    logs.loop_error(loop, {"message": message})
    loop.close()
    out = capsys.readouterr().out
    assert said in out
    assert "canary" not in out
    assert "canceling" not in out


#: One line of ours and one of a library, in a form that is given.
FORMED = """
import logging, sys
from shared.telemetry import logs

logs.configure(form=sys.argv[1], level="INFO")
logs.logger("test").warning("things_happened", number=3)
logging.getLogger("library").error("of a library")
"""


def formed(form: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", FORMED, form], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_lines_of_mozlog_have_their_event_as_the_type_and_the_rest_as_fields() -> None:
    line, library = map(json.loads, formed("mozlog"))
    assert abs(line.pop("Timestamp") / 1e9 - time.time()) < 60
    assert (line.pop("Hostname"), line.pop("Pid") > 0) == (socket.gethostname(), True)
    assert line == {
        "Type": "things_happened",
        "Logger": "mlpa",
        "EnvVersion": "2.0",
        "Severity": 4,
        "Fields": {"number": 3, "source": "test"},
    }
    assert (library["Type"], library["Severity"]) == ("of a library", 3)


def test_lines_for_google_have_severity_message_and_time() -> None:
    line, library = map(json.loads, formed("gcp"))
    assert line.pop("time").endswith("Z")
    assert line == {"severity": "WARNING", "message": "things_happened", "number": 3, "source": "test"}
    assert (library["severity"], library["message"]) == ("ERROR", "of a library")


def test_lines_of_text_are_for_people() -> None:
    line, _ = formed("text")
    assert "things_happened" in line
    assert not line.startswith("{")


@pytest.mark.parametrize(
    ("given", "form"), [({}, "text"), ({"log_json": True}, "json"), ({"log_json": True, "log_format": "gcp"}, "gcp")]
)
def test_the_older_setting_counts_where_the_newer_one_is_not_set(given: dict[str, Any], form: str) -> None:
    assert Settings(_env_file=None, **given).form_of_logs == form
    assert Settings.from_environment(_env_file=None, mlpa_debug=True, **given).form_of_logs == form


#: The same line twice: from a logger, and from that of a frequent event.
TWICE = """
import sys
from shared.telemetry import logs

logs.configure(form=sys.argv[1], level=sys.argv[2])
logs.request_id.set("r1")
logs.logger("test").info("often", number=3, nothing=None)
logs.Frequent("test", "often")({"number": 3, "nothing": None})
"""


@pytest.mark.parametrize("form", ["json", "mozlog", "gcp"])
def test_a_frequent_events_line_is_that_of_any_logger(form: str) -> None:
    usual, quick = map(json.loads, printed(TWICE, form, "INFO"))
    assert usual.keys() == quick.keys()
    for line in (usual, quick):
        del line[next(name for name in ("Timestamp", "timestamp", "time") if name in line)]
    assert usual == quick
    assert "r1" in json.dumps(quick)


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_frequent_event_keeps_to_the_level(form: str) -> None:
    assert printed(TWICE, form, "WARNING") == []
    assert len(printed(TWICE, form, "INFO")) == 2


def printed(program: str, *arguments: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()
