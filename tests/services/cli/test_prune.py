"""`mlpa prune`: what it deletes, and what it keeps."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from services.cli.prune import prune
from tests.support.sql import sql

_FILL = """
    insert into ledger (id, request_id, user_id, service_type, model, prompt_tokens, completion_tokens, cost_nano,
        period_seconds, period_index, outcome, admitted_at, settled_at)
    select n::text, 'r', 'x:ai', 'ai', 'm', 1, 1, 1, 86400, 0, 'success', now() - n * interval '1 day', now()
    from generate_series(0, 100, 20) n;
    insert into audit_log (at, actor, action, subject)
    select now() - n * interval '1 day', 'jane', 'sign_in', n::text from generate_series(0, 100, 20) n;
    insert into devices (key_id, public_key, created_at, last_used_at, revoked_at)
    values ('used', '', now() - interval '1 year', now(), null), ('new', '', now(), null, null),
        ('never used', '', now() - interval '1 year', null, null),
        ('unused', '', now() - interval '1 year', now() - interval '41 days', null),
        ('revoked', '', now() - interval '1 year', now() - interval '1 year', now());
    insert into users (user_id, identity, service_type, budget_tier) values ('known:ai', 'known', 'ai', 'ai');
    insert into identities (identity, created_at, tokens_from_ms, blocked_at)
    select name, now() - interval '1 year', extract(epoch from now() - days * interval '1 day') * 1000, blocked
    from (values ('known', 40, null), ('blocked', 40, now()), ('stranger', 40, null), ('recent', 20, null),
        ('unblocked', null, null)) as one (name, days, blocked);
    insert into identities (identity) values ('new');
    insert into identities (identity, created_at, generation) select 'erased.' || name, now() - interval '1 year', 2
    from (values ('now'), ('before')) as one (name);
    insert into erasures (digest, erased_at) values ('erased.now', now()),
        ('erased.before', now() - interval '40 days');
"""


@pytest.fixture
def filled(postgres_url: str) -> str:
    sql(postgres_url, _FILL)
    return postgres_url


def left(url: str, query: str) -> list[Any]:
    return [row[0] for row in sql(url, query)]


def test_it_deletes_what_is_older_than_the_settings_say(filled: str) -> None:
    env = {"DATABASE_URL": filled, "LEDGER_KEPT_DAYS": "31", "AUDIT_LOG_KEPT_DAYS": "70", "DEVICE_UNUSED_DAYS": "40"}
    result = CliRunner().invoke(prune, env=env)
    assert (result.exit_code, result.output) == (
        0,
        "0 ledger days, 4 ledger rows, 2 audit entries, 2 devices, 3 identities\n",
    )
    assert left(filled, "select id::int from ledger order by 1") == [0, 20]
    assert left(filled, "select subject::int from audit_log order by 1") == [0, 20, 40, 60]
    assert left(filled, "select key_id from devices order by 1") == ["new", "revoked", "used"]
    assert left(filled, "select identity from identities order by 1") == [
        "blocked",
        "erased.now",
        "known",
        "new",
        "recent",
    ]


def test_without_settings_it_keeps_everything_that_may_matter(filled: str) -> None:
    result = CliRunner().invoke(prune, env={"DATABASE_URL": filled})
    assert (result.exit_code, result.output) == (
        0,
        "0 ledger days, 0 ledger rows, 0 audit entries, 0 devices, 3 identities\n",
    )
    assert len(left(filled, "select id from ledger")) == 6


@pytest.mark.parametrize("days", ["1", "30", "-1"])
def test_a_ledger_that_is_shorter_than_the_longest_period_is_refused(filled: str, days: str) -> None:
    result = CliRunner().invoke(prune, env={"DATABASE_URL": filled, "LEDGER_KEPT_DAYS": days})
    assert "LEDGER_KEPT_DAYS" in str(result.exception)
