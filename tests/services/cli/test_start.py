"""Start-ups that are refused, as an operator meets them: one line that names the variable, exit code 2."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.auth.app import build_app
from services.auth.settings import AuthSettings
from services.auth.tokens.key_ring import ensure_key
from services.cli.main import main
from services.gateway.app import build_app as build_gateway
from services.gateway.settings import GatewaySettings
from shared.domain.service_types import ConfigurationError
from tests.support.service_types import toml

SECRET = "0123456789abcdef" * 2
ROW = toml()
PRODUCTION = {
    "MLPA_ISSUER": "https://auth.example.org",
    "CHALLENGE_SECRET": f"{SECRET}1,{SECRET}2",
    "FXA_CACHE_SECRET": SECRET,
    "ERASURE_SECRET": SECRET,
    "LOG_USER_SECRET": SECRET,
    "APP_DEVELOPMENT_TEAM": "TEAM",
    "APP_ATTEST_BUNDLE_IDS": "org.example",
    "MLPA_ADMIN_KEYS": f"ada:admin:{hashlib.sha256(SECRET.encode()).hexdigest()}",
    "MLPA_VIRTUAL_KEY": "sk-1",
    "MASTER_KEY": "sk-1",
}
Start = Callable[..., str]


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def program(command: str, environment: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """A process of its own: arguments and environment."""
    home = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    root = str(Path(__file__).parents[3])
    return [sys.executable, "-m", "services.cli.main", command], {**home, "PYTHONPATH": root, **environment}


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A good start of production, in a folder of its own."""
    for name in {*AuthSettings.model_fields, *GatewaySettings.model_fields}:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "types.toml").write_text(ROW)
    ensure_key(tmp_path / "keys")
    given = {**PRODUCTION, "SERVICE_TYPES": "types.toml", "MLPA_SIGNING_KEYS_DIR": str(tmp_path / "keys")}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return given


@pytest.fixture
def refused(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Start]:
    """Runs ``mlpa COMMAND``, which is refused; gives the line."""

    def start(command: str, **changes: str) -> str:
        for name, value in changes.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["mlpa", command])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code == 2
        assert said.out == ""
        assert said.err.count("\n") == 1
        return said.err

    mask, handler = signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.getsignal(signal.SIGTERM)
    yield start
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    signal.signal(signal.SIGTERM, handler)


def test_a_good_start_is_not_refused(environment: dict[str, str]) -> None:
    build_app(AuthSettings.from_environment())
    GatewaySettings.from_environment()


@pytest.mark.parametrize("command", ["auth", "gateway"])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("LOG_USER_SECRET", {"LOG_USER_SECRET": "x" * 31}),
        ("LOG_USER_SECRET", {"LOG_USER_SECRET": "x" + " " * 40}),
        ("LOG_USER_SECRET", {"LOG_USER_SECRET": "development-" + "x" * 40}),
        ("MLPA_ISSUER", {"MLPA_ISSUER": "https://me:canary@auth.example.org"}),
        ("MLPA_ISSUER", {"MLPA_ISSUER": "https://me@auth.example.org"}),
        ("MLPA_ISSUER", {"MLPA_ISSUER": "https://auth.example.org/mlpa"}),
        ("MLPA_ISSUER", {"MLPA_ISSUER": "https://auth.example.org/"}),
        ("MLPA_ISSUER", {"MLPA_ISSUER": "https://auth.example.org?"}),
        ("MLPA_ISSUER", {"MLPA_ISSUER": "https://auth.example.org?a=b"}),
        ("MLPA_ISSUER", {"MLPA_ISSUER": "https://auth.example.org#"}),
        ("MLPA_ISSUER", {"MLPA_ISSUER": "http://auth.example.org"}),
        ("MLPA_ISSUER", {"MLPA_ISSUER": "http://127.0.0.1.example.org"}),
        ("MLPA_ISSUER", {"MLPA_ISSUER": "", "HOST": "0.0.0.0"}),
        ("MLPA_DEBUG", {"MLPA_DEBUG": "true"}),
        ("MLPA_DEBUG", {"MLPA_DEBUG": "true", "MLPA_ISSUER": "http://127.0.0.1:8081", "HOST": "0.0.0.0"}),
        ("MLPA_DEBUG", {"MLPA_DEBUG": "true", "MLPA_ISSUER": "http://127.0.0.1:8081", "HOST": "10.0.0.1"}),
        ("MLPA_DEBUG", {"MLPA_DEBUG": "true", "MLPA_ISSUER": "http://127.0.0.1:8081", "HOST": "::"}),
        ("MLPA_ENV_FILE", {"MLPA_ENV_FILE": "nowhere.env"}),
    ],
)
def test_neither_service_starts_with(refused: Start, command: str, name: str, changes: dict[str, str]) -> None:
    said = refused(command, **changes)
    assert said.startswith(f"mlpa: {name}")
    assert "canary" not in said


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("CHALLENGE_SECRET", {"CHALLENGE_SECRET": "x"}),
        ("CHALLENGE_SECRET", {"CHALLENGE_SECRET": f"{SECRET},x"}),
        ("CHALLENGE_SECRET", {"CHALLENGE_SECRET": f"short,{SECRET}"}),
        ("CHALLENGE_SECRET", {"CHALLENGE_SECRET": "a" * 16 + "," + "b" * 16}),
        ("CHALLENGE_SECRET", {"CHALLENGE_SECRET": "development-challenge-secret"}),
        ("CHALLENGE_SECRET", {"CHALLENGE_SECRET": f"{SECRET},development-challenge-secret"}),
        ("FXA_CACHE_SECRET", {"FXA_CACHE_SECRET": "development-fxa-cache-secret"}),
        ("FXA_CACHE_SECRET", {"FXA_CACHE_SECRET": "y" * 31}),
        ("ERASURE_SECRET", {"ERASURE_SECRET": f"{SECRET},{'y' * 31}"}),
        ("MLPA_ADMIN_KEY", {"MLPA_ADMIN_KEY": "x" * 15}),
        ("MLPA_ADMIN_KEY", {"MLPA_ADMIN_KEY": " "}),
        ("MLPA_ADMIN_KEY", {"MLPA_ADMIN_KEY": "development-challenge-secret"}),
        ("MLPA_UI_ACCESS_KEY", {"MLPA_UI_ACCESS_KEY": "viewer"}),
        ("FXA_BASE_URL", {"FXA_BASE_URL": "http://oauth.accounts.firefox.com/v1"}),
        ("FXA_BASE_URL", {"FXA_BASE_URL": "http://127.0.0.1.example.org/v1"}),
        ("PLAY_BASE_URL", {"PLAY_BASE_URL": "http://playintegrity.googleapis.com"}),
        ("PLAY_BASE_URL", {"PLAY_BASE_URL": "playintegrity.googleapis.com"}),
        ("PLAY_BASE_URL", {"PLAY_BASE_URL": "https://me:canary@playintegrity.googleapis.com"}),
        ("PLAY_CERTIFICATES", {"PLAY_PACKAGES": "org.mozilla.firefox"}),
        ("PLAY_CERTIFICATES", {"PLAY_CERTIFICATES": "canary"}),
        ("PLAY_CERTIFICATES", {"PLAY_CERTIFICATES": "A" * 42 + "B"}),
        ("FXA_BASE_URL", {"FXA_BASE_URL": "oauth.accounts.firefox.com/v1"}),
        ("FXA_BASE_URL", {"FXA_BASE_URL": "https://me:canary@oauth.accounts.firefox.com/v1"}),
        ("FXA_BASE_URL", {"FXA_BASE_URL": "https://oauth.stage.mozaws.net/v1"}),
        ("FXA_BASE_URL", {"FXA_BASE_URL": "https://oauth.firefox.com.cn/v1"}),
        ("FXA_BASE_URL", {"FXA_BASE_URL": "https://oauth.example.org/v1"}),
        ("FXA_BASE_URL", {"FXA_BASE_URL": "https://accounts.firefox.com.example.org/v1"}),
        ("FXA_BASE_URL", {"FXA_ISSUER": "https://accounts.stage.mozaws.net"}),
        ("FXA_ISSUER", {"FXA_ISSUER": "accounts.firefox.com"}),
        ("ADMIN_PORT", {"ADMIN_PORT": "8081"}),
        ("ADMIN_PORT", {"ADMIN_PORT": "9090", "OPS_PORT": "9090"}),
    ],
)
def test_auth_does_not_start_with(refused: Start, name: str, changes: dict[str, str]) -> None:
    said = refused("auth", **changes)
    assert said.startswith((f"mlpa: {name} ", f"mlpa: {name}: "))  # a rule of the start, or of the setting alone
    assert not any(value in said for value in changes.values() if len(value) > 8)


@pytest.mark.parametrize(
    "changes",
    [
        {"FXA_BASE_URL": "https://oauth.stage.mozaws.net/v1", "FXA_ISSUER": "https://accounts.stage.mozaws.net"},
        {"FXA_BASE_URL": "https://api.accounts.firefox.com/v1"},
        {"FXA_BASE_URL": "https://oauth.fxa.example.org/v1", "FXA_ISSUER": "https://fxa.example.org"},
        {"FXA_BASE_URL": "http://127.0.0.1:9000/v1"},
        {"FXA_BASE_URL": "http://[::1]:9000/v1", "FXA_ISSUER": "http://fxa.test"},
        {"FXA_BASE_URL": "http://localhost:9000/v1", "FXA_ISSUER": "http://localhost:9000"},
        {"MLPA_ISSUER": "http://127.0.0.1:8081", "HOST": "0.0.0.0"},
        {"MLPA_ISSUER": ""},
        {"MLPA_ADMIN_KEY": "x" * 16, "MLPA_UI_ACCESS_KEY": "y" * 16},
        {"MLPA_DEBUG": "true", "MLPA_ISSUER": "http://localhost:8081", "CHALLENGE_SECRET": "x", "MLPA_ADMIN_KEY": "x"},
        {"MASTER_KEY": "x", "MLPA_VIRTUAL_KEY": "x"},
    ],
)
def test_what_is_sound_is_not_refused(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, changes: dict[str, str]
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    build_app(AuthSettings.from_environment())
    GatewaySettings.from_environment()


@pytest.mark.parametrize(
    "key",
    ["", "\n", "KEY", "key", "admin", "Admin\n", "password", "$ADMIN_KEY", "123456", "ada", "<key>", "changeme", "x"],
)
def test_a_digest_of_a_key_that_anybody_would_try_is_refused(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("MLPA_ADMIN_KEYS", f"bea:viewer:{digest(SECRET)},ada:admin:{digest(key)}")
    with pytest.raises(ConfigurationError, match=r"^MLPA_ADMIN_KEYS: the key named 'ada' "):
        build_app(AuthSettings.from_environment())


def test_a_digest_of_a_development_value_is_refused(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in AuthSettings.development.values():
        monkeypatch.setenv("MLPA_ADMIN_KEYS", f"ada:admin:{digest(value)}")
        with pytest.raises(ConfigurationError, match=r"^MLPA_ADMIN_KEYS"):
            build_app(AuthSettings.from_environment())


def test_an_unfit_row_is_refused(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("no-scopes.toml").write_text(ROW.replace('["profile:uid"]', "[]"))
    monkeypatch.setenv("SERVICE_TYPES", "no-scopes.toml")
    said = "^SERVICE_TYPES: no-scopes.toml: service type 'ai': fxa_scopes"
    with pytest.raises(ConfigurationError, match=said):
        build_app(AuthSettings.from_environment())
    with pytest.raises(ConfigurationError, match=said):
        build_gateway(GatewaySettings.from_environment())


@pytest.mark.parametrize(
    ("command", "changes", "said"),
    [
        ("gateway", {"LOG_USER_SECRET": "x"}, "LOG_USER_SECRET must have at least 32 characters"),
        ("auth", {"MLPA_ADMIN_KEYS": f"ada:admin:{digest('')}"}, "MLPA_ADMIN_KEYS: the key named 'ada' is empty"),
    ],
)
def test_a_process_is_refused(environment: dict[str, str], command: str, changes: dict[str, str], said: str) -> None:
    argv, given = program(command, environment)
    done = subprocess.run(argv, env={**given, **changes}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"mlpa: {said}")
    assert done.stderr.count("\n") == 1


def test_an_env_file_that_is_not_utf8_is_one_line(refused: Start) -> None:
    Path(".env").write_bytes(b"LOG_LEVEL=\xff\n")
    assert refused("gateway") == "mlpa: .env: not UTF-8\n"
    assert refused("settings") == "mlpa: .env: not UTF-8\n"
    assert refused("auth", MLPA_ENV_FILE=str(Path(".env").resolve())).endswith("/.env: not UTF-8\n")


def test_an_env_file_that_others_can_write_is_read_only_when_named(
    refused: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(".env")
    path.write_text("LOG_LEVEL=DEBUG\n")
    assert GatewaySettings.from_environment().log_level == "DEBUG"
    path.chmod(0o666)
    assert refused("gateway").startswith("mlpa: .env: others can write it")
    path.chmod(0o600)
    Path.cwd().chmod(0o1777)
    assert refused("gateway").startswith("mlpa: .env: others can write it")
    monkeypatch.setenv("MLPA_ENV_FILE", ".env")
    assert GatewaySettings.from_environment().log_level == "DEBUG"
    monkeypatch.setenv("MLPA_ENV_FILE", "")
    assert GatewaySettings.from_environment().log_level == "INFO"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to somebody else")
def test_an_env_file_of_somebody_else_is_read_only_when_named(refused: Start) -> None:
    Path(".env").write_text("LOG_LEVEL=DEBUG\n")
    os.chown(".env", 4711, 4711)
    assert refused("gateway").startswith("mlpa: .env: others can write it")


def test_variables_that_are_nearly_settings_are_warned_of(environment: dict[str, str]) -> None:
    argv, given = program("gateway", environment)
    Path(".env").write_text("MAX_OPEN_REQUEST=canary\nCHALENGE_SECRTE=canary\nPOSTGRES_PASSWORD=canary\n")
    running = subprocess.Popen(
        argv, env={**given, "PORT": "0", "LOG_FORMAT": "json"}, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    said = [running.stdout.readline() for _ in range(2)]
    running.send_signal(signal.SIGKILL)
    rest = running.communicate()[0]
    told = [(line["variable"], line["like"]) for line in map(json.loads, said)]
    assert told == [("CHALENGE_SECRTE", "CHALLENGE_SECRET"), ("MAX_OPEN_REQUEST", "MAX_OPEN_REQUESTS")]
    assert "canary" not in "".join(said) + rest
    assert "POSTGRES_PASSWORD" not in rest
