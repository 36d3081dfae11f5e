"""Whatever part of the system breaks, and however: each answer is the documented one, in time, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.clients import Seen, SeenStream
from tests.system.conftest import TABLES
from tests.system.faults import BOUNDS, DEADLY, HEALTHY, ROWS, WORK, Row, run_rows

#: The longest that an answer may take when Redis, PostgreSQL, FxA or auth are in trouble: 3 s, and as much again for a
#: machine on which several systems start and stop at the same time.
LONGEST = 3.0 + 3.0

GONE = ("killed", "stopped", "refusing")
EXCHANGES = ("exchange", "opaque", "device", "newcomer")
#: What is decided about a token, an identity or an account, and an export, which is recorded.
DECISIONS = ("revoke", "block", "password", "deletion", "erasure", "export")
AUTH = (*EXCHANGES, *DECISIONS)

#: Statuses by part, faults and work; where nothing stands here, 200, and 204 of an erasure; 0 for no answer at all.
EXPECTED: dict[tuple[str, tuple[str, ...]], dict[tuple[str, ...], set[int]]] = {
    ("postgres", GONE): {("device", "newcomer", *DECISIONS): {503}},
    ("postgres", ("slow",)): {("device", "newcomer", *DECISIONS): {200, 204, 503}},
    ("postgres", ("restarted empty",)): {("device",): {400}, ("block", "erasure"): {404}},
    ("valkey", GONE): {("device", "chat", "new stream", *DECISIONS): {503}},
    ("valkey", ("slow",)): {("device", "chat", "new stream", *DECISIONS): {200, 204, 503}},
    ("litellm", ("killed", "refusing")): {("chat", "new stream", "chat later"): {502}},
    # while it starts
    ("litellm", ("restarted empty",)): {("chat", "new stream"): {200, 502}},
    ("fxa", GONE): {("opaque",): {503}},
    ("fxa", ("restarted empty",)): {("opaque",): {400}},
    ("auth-1", ("killed", "refusing")): {AUTH: {0}},
}
#: What waits until a stopped part continues.
WAITS = {
    ("litellm", "stopped"): ("chat", "new stream"),
    # these ask several times in turn
    ("postgres", "slow"): ("password", "deletion", "erasure", "export"),
    ("valkey", "slow"): ("password", "deletion", "erasure", "export"),
    ("auth-1", "stopped"): AUTH,
}
#: Where a stream in flight ends with what carries it.
CUT = {*((part, fault) for part in ("litellm", "gateway-1") for fault in ("killed", "refusing", "restarted empty"))}


CASES = pytest.mark.parametrize(("part", "fault"), [case for cases in ROWS for case in cases])


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory, template: Path) -> dict[tuple[str, str], Row]:
    """All rows, on several systems at the same time."""
    folder = tmp_path_factory.mktemp("faults")

    async def run() -> list[list[Row]]:
        systems = (run_rows(folder / str(number), template, cases) for number, cases in enumerate(ROWS))
        return await asyncio.gather(*systems)

    rows = {(row.part, row.fault): row for some in asyncio.run(run()) for row in some}
    TABLES.append(("fault matrix: status and seconds of each answer", _table(rows)))
    return rows


@CASES
def test_a_broken_part_shows_only_where_it_must(matrix: dict[tuple[str, str], Row], part: str, fault: str) -> None:
    row = matrix[part, fault]
    wrong = [f"{name}: {seen}, not {expected}" for name, seen, expected in _judged(row) if expected]
    assert not wrong, "\n".join(wrong)


@CASES
def test_all_is_well_soon_after(matrix: dict[tuple[str, str], Row], part: str, fault: str) -> None:
    assert 0 <= matrix[part, fault].healthy <= HEALTHY


@CASES
def test_every_request_that_was_answered_is_in_the_ledger(
    matrix: dict[tuple[str, str], Row], part: str, fault: str
) -> None:
    assert matrix[part, fault].lost == []


@CASES
def test_a_changed_password_and_an_erasure_hold_afterwards_and_happened_once(
    matrix: dict[tuple[str, str], Row], part: str, fault: str
) -> None:
    assert matrix[part, fault].undone == []


@pytest.mark.parametrize(
    "fault", [fault for cases in ROWS for part, fault in cases if part == "gateway-1" and fault in DEADLY]
)
def test_what_a_killed_gateway_had_open_is_charged_whole_when_its_lease_ends(
    matrix: dict[tuple[str, str], Row], fault: str
) -> None:
    row = matrix["gateway-1", fault]
    stream = row.seen["stream in flight"]
    assert isinstance(stream, SeenStream)
    assert stream.events
    assert not stream.done
    assert {name: charge.cost_nano for name, charge in row.charges.items()} == BOUNDS
    assert {charge.outcome for charge in row.charges.values()} == {"expired"}
    assert all(30 <= charge.seconds <= 36 for charge in row.charges.values())


def _judged(row: Row) -> Iterator[tuple[str, Seen | SeenStream, str]]:
    """``(work, seen, what was expected)``; nothing is expected of what is right."""
    waits = WAITS.get((row.part, row.fault), ())
    for name, seen in row.seen.items():
        if name == "stream in flight":
            assert isinstance(seen, SeenStream)
            cut = (row.part, row.fault) in CUT
            good = seen.status == 200 and seen.done != cut and (cut or not seen.error)
            yield name, seen, "" if good else "cut without [DONE]" if cut else "whole"
            continue
        allowed = _allowed(row, name)
        if seen.status not in allowed:
            yield name, seen, f"{sorted(allowed)}"
        elif name not in waits and seen.seconds > LONGEST:
            yield name, seen, f"within {LONGEST} s"
        elif seen.status == 503 and isinstance(seen, Seen) and "Retry-After" not in seen.headers:
            yield name, seen, "Retry-After"
        else:
            yield name, seen, ""


def _allowed(row: Row, name: str) -> set[int]:
    for (part, faults), works in EXPECTED.items():
        if part == row.part and row.fault in faults:
            for names, statuses in works.items():
                if name in names:
                    return statuses
    return {204} if name == "erasure" else {200}


def _table(rows: dict[tuple[str, str], Row]) -> list[str]:
    names = (*WORK, "chat later")
    lines = [f"{'part':10}{'fault':17}{''.join(f'{_short(name):12}' for name in names)}lost  healthy s"]
    for row in rows.values():
        cells = "".join(f"{_cell(row.seen.get(name)):12}" for name in names)
        lost = "reaped" if row.charges else str(len(row.lost))
        lines.append(f"{row.part:10}{row.fault:17}{cells}{lost:8}{row.healthy:.1f}")
    return lines


def _short(name: str) -> str:
    return {"stream in flight": "in flight"}.get(name, name)


def _cell(seen: Seen | SeenStream | None) -> str:
    if seen is None:
        return ""
    if isinstance(seen, SeenStream) and seen.status == 200:
        return f"{'whole' if seen.done else 'cut'} {seen.seconds:.1f}"
    return f"{seen.status or '-'} {seen.seconds:.1f}"
