"""What each role may do with each table: the one place where it is decided.

``env.py`` brings a database to this after every migration, for the roles that exist (``deploy/roles.sql`` makes them);
in a database without them the owner does everything. A new table must stand here, even if nobody is granted anything. A
right that a release stops using is taken away one release later, since both run at once during a rollout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import sqlalchemy as sa

AUTH = "mlpa_auth"
GATEWAY = "mlpa_gateway"
ROLES = (AUTH, GATEWAY)

#: ``{table: {role: rights}}``; a right may name columns.
GRANTS: dict[str, dict[str, tuple[str, ...]]] = {
    # The code asks which revision it meets
    "alembic_version": {AUTH: ("select",), GATEWAY: ("select",)},
    # None is given another key
    "devices": {
        AUTH: (
            "select",
            "insert",
            "delete",
            "update (counter, counters_taken, environment, bundle_id, bundle_version, validation_category, receipt, "
            "receipt_due_at, receipt_fault, risk_metric, risk_metric_at, last_used_at, revoked_at, revoked_reason)",
        ),
        GATEWAY: ("select (key_id, revoked_at)",),
    },
    "identities": {
        AUTH: (
            "select",
            "insert",
            "update (identity, blocked_at, blocked_reason, tokens_from_ms, generation)",
            "delete",
        ),
        GATEWAY: ("select (identity, blocked_at, tokens_from_ms)",),
    },
    "fxa_deliveries": {AUTH: ("select", "insert", "delete")},
    "users": {
        AUTH: ("select", "insert", "update (budget_tier, last_seen_at, litellm_budget)", "delete"),
        GATEWAY: ("select (user_id, budget_tier)",),
    },
    "capacity": {AUTH: ("select", "insert", "update (users)")},
    "capacity_lanes": {AUTH: ("select", "insert", "update (users)")},
    "pools": {AUTH: ("select", "insert", "update (service_types, users)")},
    "exceptions": {
        AUTH: ("select", "insert", "update (extra_nano, without_rates, ends_at, reason)", "delete"),
        GATEWAY: ("select (user_id, extra_nano, without_rates, ends_at)",),
    },
    "revocations": {
        AUTH: ("select", "insert", "update (user_id)", "delete"),
        GATEWAY: ("select (jti, user_id, expires_at)",),
    },
    # What was written stays, but for ids of the erased (``rename_entries``)
    "audit_log": {AUTH: ("select", "insert")},
    # ``mlpa ledger prune`` runs as the owner
    "ledger": {
        AUTH: ("select",),
        GATEWAY: ("select", "insert", "update (prompt_tokens, completion_tokens, cost_nano, outcome, settled_at)"),
    },
    # Auth shows them, and deletes old ones
    "refusals": {AUTH: ("select", "delete"), GATEWAY: ("insert",)},
    # The ledger's triggers write these, with the rights of the owner
    "user_spend": {AUTH: ("select",), GATEWAY: ("select",)},
    "ledger_totals": {GATEWAY: ("select",)},
    "ledger_hours": {AUTH: ("select",)},
    "usage_hours": {AUTH: ("select", "insert", "delete")},
    "redis_changes": {AUTH: ("select", "insert", "delete")},
    "erasures": {AUTH: ("select", "insert", "update", "delete"), GATEWAY: ("select (digest, fingerprint)",)},
}
#: Functions that run with the rights of the owner, and the roles that may call them.
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "rename_requests(text, text, timestamptz, integer)": (AUTH,),
    "rename_entries(text, text)": (AUTH,),
}


def apply(connection: sa.Connection) -> None:
    """Give the roles that exist these rights, and no others, on the tables that exist; in the caller's transaction."""
    roles = [role for role in ROLES if _exists(connection, "pg_roles where rolname = :name", role)]
    tables = [
        name
        for name in GRANTS
        if _exists(connection, "pg_tables where schemaname = 'public' and tablename = :name", name)
    ]
    functions = [
        name
        for name in FUNCTIONS
        if connection.scalar(sa.text("select to_regprocedure(:name) is not null"), {"name": name})
    ]
    for role in roles:
        for statement in _statements(role, tables, functions):
            connection.execute(sa.text(statement))


def script() -> list[str]:
    """The same for a database with all of them, as statements that find out themselves which roles there are."""
    blocks = []
    for role in ROLES:
        body = "".join(f"\n        {statement};" for statement in _statements(role, GRANTS, FUNCTIONS))
        condition = f"exists (select from pg_roles where rolname = '{role}')"
        blocks.append(f"do $$ begin\n    if {condition} then{body}\n    end if;\nend $$")
    return blocks


def _statements(role: str, tables: Iterable[str], functions: Iterable[str]) -> Iterator[str]:
    yield f"revoke all on all tables in schema public from {role}"
    yield f"revoke all on all sequences in schema public from {role}"
    yield f"grant usage on schema public to {role}"
    for table in tables:
        if rights := GRANTS[table].get(role):
            yield f"grant {', '.join(rights)} on {table} to {role}"
    for name in functions:
        yield (
            f"grant execute on function {name} to {role}"
            if role in FUNCTIONS[name]
            else f"revoke execute on function {name} from {role}"
        )


def _exists(connection: sa.Connection, what: str, name: str) -> bool:
    return bool(connection.scalar(sa.text(f"select exists(select from {what})"), {"name": name}))  # noqa: S608  ours
