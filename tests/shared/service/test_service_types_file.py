"""The file of service types while a process runs: taken when it has changed, or refused as a whole."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from shared.domain import service_types
from shared.domain.service_types import ServiceTypes
from shared.service import background
from shared.service.health import Health
from shared.service.service_types_file import ServiceTypesFile
from shared.telemetry.metrics import Registry

AI = """
[[service_type]]
name = "ai"
max_budget = "0.10"
duration = "1d"
rpm = 40
tpm = 2000
models = ["*"]
credentials = ["app_attest"]
"""
S2S = AI.replace('"ai"', '"s2s"')
MODEL = '\n[[model]]\nname = "m"\n'
RARELY = 3600.0


class Watched:
    """A file, and the table of a process that watches it."""

    def __init__(self, path: Path, every: float) -> None:
        self.path = path
        self.path.write_text(AI)
        self.registry = Registry()
        self.table = service_types.load(path, debug=False)
        self.seen: list[int] = []
        self.table.on_change(lambda: self.seen.append(self.table.by_name["ai"].rpm))
        self.file = ServiceTypesFile(path, self.table, self.registry, debug=False, every=every)
        self.rows = self.table.by_name

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not true():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    @property
    def failures(self) -> int:
        line = self.registry.render().decode().partition("\nservice_types_reload_failures_total ")[2]
        return int(float(line.split()[0]))

    async def check(self, name: str) -> str | None:
        _, body = await Health(self.file.checks()).readiness(draining=False)
        shown: str | None = body["checks"][name]["error"]
        return shown

    async def ask(self, text: str) -> None:
        """Write the file, and have it read now."""
        self.path.write_text(text)
        before = self.failures, len(self.seen)
        self.file.read_soon()
        await self.until(lambda: (self.failures, len(self.seen)) != before)


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    """It looks at its file only when it is asked to."""
    one = Watched(tmp_path / "types.toml", RARELY)
    async with background.running(one.registry, file=one.file.run):
        yield one


async def test_a_changed_table_is_taken_by_all_who_hold_its_rows(watched: Watched) -> None:
    await watched.ask(AI.replace("rpm = 40", "rpm = 41") + S2S + MODEL)
    assert (watched.rows["ai"].rpm, list(watched.rows), list(watched.table.models)) == (41, ["ai", "s2s"], ["m"])
    assert watched.seen == [41]
    await watched.ask(AI.replace("rpm = 40", "rpm = 42") + S2S)
    assert (watched.rows["ai"].rpm, list(watched.table.models)) == (42, [])


async def test_a_change_of_the_file_is_seen_without_being_asked(tmp_path: Path) -> None:
    watched = Watched(tmp_path / "types.toml", 0.05)
    async with background.running(watched.registry, file=watched.file.run):
        watched.path.write_text(AI.replace("40", "41"))
        await watched.until(lambda: watched.rows["ai"].rpm == 41)
        other = tmp_path / "other.toml"
        other.write_text(AI.replace("40", "42"))
        other.rename(watched.path)
        await watched.until(lambda: watched.rows["ai"].rpm == 42)
        watched.path.unlink()
        await watched.until(lambda: watched.failures == 1)
        assert "No such file" in str(await watched.check("service_types"))
        await asyncio.sleep(0.5)  # the same fault counts once
        assert watched.failures == 1
        watched.path.write_text(AI.replace("40", "42"))
        async with asyncio.timeout(5):
            while await watched.check("service_types"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert watched.rows["ai"].rpm == 42


async def test_a_file_that_is_still_being_written_is_not_taken(tmp_path: Path) -> None:
    """Each look sees another beginning of the table; each is a good table by itself."""
    watched = Watched(tmp_path / "types.toml", 0.5)
    whole = AI.replace("40", "41") + S2S + MODEL
    async with background.running(watched.registry, file=watched.file.run):
        watched.path.write_text(AI.replace("40", "41"))
        with watched.path.open("a") as growing:
            for piece in whole[len(AI) :]:
                growing.write(piece)
                growing.flush()
                await asyncio.sleep(0.01)
                assert watched.seen == []
        await watched.until(lambda: "s2s" in watched.rows)
    assert (watched.seen, watched.failures) == ([41], 0)


@pytest.mark.parametrize(
    ("bad", "named", "line"),
    [
        (AI.replace("rpm = 40", "rpm = -1"), "rpm", 6),
        (AI.replace("rpm = 40", 'rpm = "forty"'), "rpm", 6),
        (AI.replace("rpm = 40", "rpm = 40\nrpmm = 1"), "rpmm", 7),
        (AI.replace("rpm = 40\n", ""), "rpm", 2),
        (AI + "\n" + S2S.replace('"0.10"', '"a lot"'), "max_budget", 14),
        (AI + MODEL + S2S.replace('duration = "1d"', 'duration = "2d"'), "duration", 17),
        (AI.replace('duration = "1d"', 'duration = "7d"'), "duration", 5),
        (AI + AI, "repeated", 12),
        (AI + MODEL + 'input_cost_per_token = "dear"', "input_cost_per_token", 13),
        (AI + MODEL + 'input_cost_per_token = "\u0661"', "input_cost_per_token", 13),
        (AI.replace('credentials = ["app_attest"]', 'credentials = ["fxa"]'), "fxa_client_ids", 2),
        (AI + "enforce = false\n", "enforce_until", 10),
        (AI + "enforce = false\nenforce_until = 2099-01-01T00:00:00Z\n", "enforce_until", 11),
        (AI + "enforce = false\nenforce_until = 2026-01-01T00:00:00\n", "enforce_until", 11),
        (AI + "[[", "types.toml", 10),
    ],
)
async def test_a_table_that_can_not_be_used_changes_nothing_and_is_named_with_its_line(
    watched: Watched, bad: str, named: str, line: int
) -> None:
    await watched.ask(bad)
    assert (watched.rows["ai"].rpm, list(watched.rows), watched.seen, watched.failures) == (40, ["ai"], [], 1)
    fault = str(await watched.check("service_types"))
    assert named in fault
    assert f"line {line}" in fault
    await watched.ask(AI.replace("40", "41"))
    assert await watched.check("service_types") is None
    assert watched.rows["ai"].rpm == 41


@pytest.mark.parametrize("rest", [S2S, ""])
async def test_a_row_that_is_gone_is_refused_by_name(watched: Watched, rest: str) -> None:
    await watched.ask(AI + S2S)
    await watched.ask(rest or AI)
    assert ("'ai' is missing" if rest else "'s2s' is missing") in str(await watched.check("service_types"))
    assert list(watched.rows) == ["ai", "s2s"]


async def test_a_row_needs_no_client_key_that_the_process_does_not_have(watched: Watched) -> None:
    await watched.ask(AI + 'client_key = "any"\n')
    assert watched.rows["ai"].client_key == "any"
    watched.table.client_keys = frozenset({"dev"})
    await watched.ask(AI + S2S + 'client_key = "devv"\n')
    assert "CLIENT_KEYS has no key named 'devv' (line 19)" in str(await watched.check("service_types"))
    assert (list(watched.rows), watched.failures) == (["ai"], 1)
    await watched.ask(AI + S2S + 'client_key = "dev"\n')
    assert watched.rows["s2s"].client_key == "dev"


async def test_readiness_names_the_rows_that_refuse_nobody_until_their_time_is_over(watched: Watched) -> None:
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    await watched.ask(AI + f"enforce = false\nenforce_until = {soon}\n")
    assert await watched.check("enforcement") == f"budget and rates refuse nobody: ai until {soon}"
    assert 'service_type_enforced{service_type="ai"} 0' in watched.registry.render().decode()
    await watched.ask(AI + "enabled = false\nenforce = false\nenforce_until = 2025-01-01T00:00:00Z\n")
    assert await watched.check("enforcement") is None
    metrics = watched.registry.render().decode()
    assert 'service_type_enforced{service_type="ai"} 1' in metrics
    assert 'service_type_enabled{service_type="ai"} 0' in metrics


def test_the_same_table_is_no_change() -> None:
    table = service_types.load(None, debug=True)
    assert not table.take(service_types.load(None, debug=True))
    assert table.take(
        ServiceTypes(table.by_name, {})
        if table.models
        else ServiceTypes({**table.by_name, "x": table.by_name["ai"]}, {})
    )
