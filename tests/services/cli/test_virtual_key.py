"""``mlpa virtual-key``: the key is made, ``.env`` keeps everything else, and failures are reported."""

from __future__ import annotations

import asyncio
import stat
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from services.cli.virtual_key import replace_line, virtual_key
from tests.doubles.litellm_admin import MASTER_KEY, LiteLLMAdminDouble, hang, html

KEY = "sk-made-by-the-double-1"


@pytest.fixture
def litellm() -> Iterator[LiteLLMAdminDouble]:
    """A double in a thread of its own: the command runs its own event loop."""
    double = LiteLLMAdminDouble()
    ready, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with double.running():
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(10)
    yield double
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("MASTER_KEY", "LITELLM_API_BASE", "MLPA_VIRTUAL_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def run(url: str, key: str | None = MASTER_KEY, *, options: Sequence[str] = (), **env: str) -> Result:
    given = {"LITELLM_API_BASE": url, **({"MASTER_KEY": key} if key else {}), **env}
    return CliRunner().invoke(virtual_key, options, env=given)


def test_the_key_is_written_to_an_env_file_that_only_its_owner_reads(folder: Path, litellm: LiteLLMAdminDouble) -> None:
    result = run(litellm.url)
    assert result.exit_code == 0, result.output
    assert (folder / ".env").read_text() == f"MLPA_VIRTUAL_KEY={KEY}\n"
    assert stat.S_IMODE((folder / ".env").stat().st_mode) == 0o600
    assert KEY not in result.output
    assert litellm.keys[0]["key_alias"].startswith("mlpa-gateway-")


def test_a_dash_prints_the_line_alone_and_writes_nothing(folder: Path, litellm: LiteLLMAdminDouble) -> None:
    result = run(litellm.url, options=["--env-file", "-"])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"MLPA_VIRTUAL_KEY={KEY}\n"
    assert litellm.keys[0]["key_alias"] in result.stderr
    assert list(folder.iterdir()) == []


def test_settings_come_from_the_env_file_and_a_second_key_replaces_the_first(
    folder: Path, litellm: LiteLLMAdminDouble
) -> None:
    before = f"# ours\nMASTER_KEY={MASTER_KEY}\nLITELLM_API_BASE={litellm.url}\n"
    (folder / ".env").write_text(before)
    for number in (1, 2):
        result = CliRunner().invoke(virtual_key, [])
        assert result.exit_code == 0, result.output
        assert (folder / ".env").read_text() == f"{before}MLPA_VIRTUAL_KEY=sk-made-by-the-double-{number}\n"


def test_a_variable_of_the_environment_that_hides_the_new_key_is_told(
    folder: Path, litellm: LiteLLMAdminDouble
) -> None:
    result = run(litellm.url, MLPA_VIRTUAL_KEY="sk-old")
    assert result.exit_code == 0
    assert "environment has a MLPA_VIRTUAL_KEY of its own" in result.output
    assert "sk-old" not in result.output


def test_no_database_is_said(folder: Path, litellm: LiteLLMAdminDouble) -> None:
    litellm.database = False
    for key in (MASTER_KEY, "sk-wrong"):
        result = run(litellm.url, key)
        assert result.exit_code == 1
        assert "without a database" in result.output
    assert not (folder / ".env").exists()


def test_a_wrong_master_key_is_said(folder: Path, litellm: LiteLLMAdminDouble) -> None:
    result = run(litellm.url, "sk-wrong-key")
    assert result.exit_code == 1
    assert "refuses MASTER_KEY" in result.output
    assert "sk-wrong-key" not in result.output
    assert not (folder / ".env").exists()


def test_a_missing_master_key_is_said(folder: Path) -> None:
    result = run("http://127.0.0.1:9", None)
    assert result.exit_code == 1
    assert "MASTER_KEY is not set" in result.output


def test_nobody_there_is_said_with_the_address(folder: Path, unused_port: int) -> None:
    result = run(f"http://127.0.0.1:{unused_port}")
    assert result.exit_code == 1
    assert "takes no connection" in result.output
    assert f"http://127.0.0.1:{unused_port}" in result.output


def test_something_else_than_litellm_is_said(folder: Path, litellm: LiteLLMAdminDouble) -> None:
    litellm.fault = html
    result = run(litellm.url)
    assert result.exit_code == 1
    assert "without JSON" in result.output


def test_a_hanging_litellm_is_said_in_time(folder: Path, litellm: LiteLLMAdminDouble) -> None:
    litellm.fault = hang
    result = run(litellm.url, options=["--timeout", "0.2"])
    assert result.exit_code == 1
    assert "no answer" in result.output


@pytest.mark.parametrize("name", ["binary.env", "no-folder/.env", "folder"])
def test_no_key_is_made_for_a_file_that_cannot_be_written(folder: Path, litellm: LiteLLMAdminDouble, name: str) -> None:
    (folder / "binary.env").write_bytes(b"A=\xff\n")
    (folder / "folder").mkdir()
    result = run(litellm.url, options=["--env-file", name])
    assert result.exit_code != 0
    assert name in result.output
    assert litellm.keys == []
    assert sorted(path.name for path in folder.iterdir()) == ["binary.env", "folder"]
    assert (folder / "binary.env").read_bytes() == b"A=\xff\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "K=new\n"),
        ("A=1", "A=1\nK=new\n"),
        ("A=1\n\n# about K\nK=old\nB=2\n", "A=1\n\n# about K\nK=new\nB=2\n"),
        ("\n\nexport K='old'\n", "\n\nexport K=new\n"),
        ("K=\nA=1\nK=older\n", "K=new\nA=1\n"),
        ('A="first\nK=not this\nlast"\nKK=1\n#K=2\n', 'A="first\nK=not this\nlast"\nKK=1\n#K=2\nK=new\n'),
        ("A=1\r\nK=old\r\nB=2\r\n", "A=1\r\nK=new\nB=2\r\n"),
        ("this is = no 'variable\nK=old", "this is = no 'variable\nK=new\n"),
    ],
)
def test_every_other_line_stays_as_it_is(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / ".env"
    path.write_text(before, newline="")
    path.chmod(0o644)
    replace_line(path, "K", "new")
    assert path.read_bytes().decode() == after
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_symlink_stays_one(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.write_text("A=1\n")
    (tmp_path / ".env").symlink_to(real)
    replace_line(tmp_path / ".env", "K", "new")
    assert (tmp_path / ".env").is_symlink()
    assert real.read_text() == "A=1\nK=new\n"
