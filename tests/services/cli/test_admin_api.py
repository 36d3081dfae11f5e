"""The commands of support with addresses, answers and figures that are not what they should be."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner

from services.cli.commands import cli

KEY = {"MLPA_ADMIN_KEY": "a key"}


class _Other(BaseHTTPRequestHandler):
    """A server that is neither auth nor a gateway. The key says which answer it gives."""

    def do_GET(self) -> None:
        body = BODIES[int(self.headers["Authorization"].removeprefix("Bearer "))].encode()
        self.send_response(404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""


BODIES = (
    '{"detail":"Not Found"}',
    "[]",
    '"no"',
    "null",
    '{"error":null}',
    '{"error":{"message":"no"}}',
    '{"error":"no"}',
)


@pytest.fixture(scope="module")
def other() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("number", range(len(BODIES)))
def test_an_answer_of_another_server_is_one_line(other: str, number: int) -> None:
    done = CliRunner(env={"MLPA_ADMIN_KEY": str(number)}).invoke(cli, ["user", "--auth-url", other, "show", "a:ai"])
    assert (done.exit_code, done.stderr) == (1, f"Error: {other}: 404, and not in the words of auth\n")


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1", "http://", "http://[", "http://127.0.0.1:99999999"])
@pytest.mark.parametrize("command", [("user", "show", "a:ai"), ("audit",), ("models",)], ids=lambda words: words[0])
def test_an_address_that_is_no_url_is_refused(url: str, command: tuple[str, ...]) -> None:
    option = "--gateway-url" if command == ("models",) else "--auth-url"
    done = CliRunner(env=KEY).invoke(cli, [command[0], option, url, *command[1:]])
    assert (done.exit_code, "is not an http or https URL" in done.stderr) == (2, True)


@pytest.mark.parametrize("hours", ["9999999999", "nan", "inf"])
def test_an_exception_without_an_end_on_the_calendar_is_refused(hours: str) -> None:
    done = CliRunner(env=KEY).invoke(cli, ["user", "exception", "a:ai", "--usd", "1", "--hours", hours])
    assert (done.exit_code, "there is no such date" in done.stderr) == (2, True)


def test_help_needs_no_key() -> None:
    done = CliRunner(env={"MLPA_ADMIN_KEY": ""}).invoke(cli, ["user", "exception", "--help"])
    assert (done.exit_code, "--no-rates" in done.stdout) == (0, True)
    assert (
        "MLPA_ADMIN_KEY is not set" in CliRunner(env={"MLPA_ADMIN_KEY": ""}).invoke(cli, ["user", "show", "a"]).stderr
    )
