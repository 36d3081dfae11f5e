"""services/README.md leads to files that exist, and names the contents of Redis as the code does."""

from __future__ import annotations

import re

from migrations.grants import GRANTS
from shared.domain.outcome import Outcome
from shared.state import layout
from tests.deploy.declarations import ROOT

TEXT = (ROOT / "services" / "README.md").read_text()
_PATH = re.compile(r"`((?:services|auth|gateway|shared|migrations|tests|deploy)/[\w./-]*)`")


def test_every_path_that_it_names_exists() -> None:
    named = _PATH.findall(TEXT)
    assert len(named) > 80
    missing = [path for path in named if not any((base / path).exists() for base in (ROOT, ROOT / "services"))]
    assert missing == []


def test_the_folders_that_it_draws_are_those_that_there_are() -> None:
    drawing = TEXT.partition("```\n")[2].partition("```")[0]
    for service in ("auth", "gateway"):
        drawn = drawing.partition(f"services/{service}/")[2].partition("services/")[0]
        words = re.sub(r"\([^)]*\)", "", drawn).split()
        folders = {path.name for path in (ROOT / "services" / service).iterdir() if (path / "__init__.py").exists()}
        assert set(words) == folders


def test_its_links_lead_somewhere() -> None:
    for name in ("README.md", "PROTOCOL.md"):
        text = (ROOT / "services" / name).read_text()
        for link in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", text):
            assert (ROOT / "services" / link).exists(), (name, link)
        headings = {_slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
        assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= headings, name


def _slug(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_it_has_every_key_of_a_users_state() -> None:
    shown = {name: key for key, name in re.findall(r"^\| `([^`]*)` \| `([a-z_]+)` \| [A-Z]+ \|", TEXT, re.MULTILINE)}
    shard = layout.SHARD_KEYS[0]
    found = {
        name: str(getattr(shard, name)).removeprefix(shard.prefix)
        for name in ("leases", "outbox", "totals", "sums", "forgotten", "claim")
    }
    found |= {"user": shard.user("<user id>"), "identity": shard.identity("<identity>"), "token": shard.token("<jti>")}
    found |= {"requests_window": shard.requests_window("<user id>"), "tokens_window": shard.tokens_window("<user id>")}
    found["tombstone"] = shard.tombstone("<request>")
    assert shown == {name: key.removeprefix(shard.prefix) for name, key in found.items()}


def test_it_has_every_outcome_of_a_request() -> None:
    (row,) = re.findall(r"^\| \*\*outcome\*\* \|.*$", TEXT, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) == set(Outcome)


def test_it_has_every_table() -> None:
    rows = TEXT.partition("## What PostgreSQL holds")[2].partition("## ")[0]
    assert {*re.findall(r"^\| `(\w+)`", rows, re.MULTILINE), "alembic_version"} == GRANTS.keys()


def test_it_has_every_field_of_a_users_state() -> None:
    shown = {
        name: field.partition("<")[0]
        for field, name in re.findall(r"^\| `([^`]*)` \| `([A-Z_]+)` \|", TEXT, re.MULTILINE)
    }
    assert shown
    assert shown == {name: getattr(layout, name, None) for name in shown}
