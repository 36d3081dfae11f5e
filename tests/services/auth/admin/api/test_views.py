"""/user: who may use it, its answers, and that a change reaches both PostgreSQL and Redis."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from yarl import URL

from services.auth.admin.app import OPERATIONS
from shared.state import decisions, layout
from shared.state.layout import Standing
from shared.stores.redis import connect
from tests.services.auth.admin.conftest import ADMIN, ADMIN_SETTINGS, NAMED, UID, USER, VIEWER, Rows, bearer
from tests.services.auth.conftest import Auth, StartAuth
from tests.support.service_types import toml

KEY_ID = "+/" + "A" * 41 + "="
DEVICE_USER = f"{KEY_ID}:ai"


def at(user_id: str, rest: str = "") -> str:
    return f"/user/{quote(user_id, safe='')}{rest}"


async def ask(auth: Auth, method: str, path: str, key: str | None = ADMIN, **options: Any) -> tuple[int, Any, Any]:
    url = URL(auth.url + path, encoded=True)
    async with auth.session.request(method, url, headers=bearer(key) if key else {}, **options) as response:
        raw = await response.read()
        return response.status, json.loads(raw) if raw else None, response.headers


async def test_without_a_configured_key_there_is_nothing(start_auth: StartAuth) -> None:
    auth = await start_auth()
    for method, path in [
        ("GET", "/user"),
        ("GET", at(USER)),
        ("POST", at(USER, "/block")),
        ("PUT", at(USER)),
        ("GET", "/admin"),
        ("POST", "/admin/sign-in"),
        ("GET", "/admin/static/console.css"),
    ]:
        status, body, _ = await ask(auth, method, path)
        assert (status, body["error"]) == (404, "not_found"), path


async def test_no_key_and_a_wrong_key_are_told_how_to_come(admin_auth: Auth) -> None:
    for method, path in [("GET", "/user"), ("GET", at(USER)), ("DELETE", at(USER)), ("POST", at(USER, "/unblock"))]:
        status, body, headers = await ask(admin_auth, method, path, key=None)
        assert (status, body["error"], headers["WWW-Authenticate"]) == (401, "unauthorized", 'Bearer realm="mlpa"')
        status, _, headers = await ask(admin_auth, method, path, key="wrong")
        assert status == 401
        assert 'error="invalid_token"' in headers["WWW-Authenticate"]


async def test_other_authorization_headers_are_refused(admin_auth: Auth) -> None:
    for header in ["", "Bearer", "Basic dGVzdA==", f"Bearer {ADMIN}x", "Bearer \xff"]:
        status, _, _ = await admin_auth.ask("GET", "/user", headers={"Authorization": header})
        assert status == 401, header


@pytest.mark.parametrize("setting", ["ops_port", "admin_port"])
async def test_on_a_port_of_operators_nobody_chooses_its_source(
    start_auth: StartAuth, rows: Rows, unused_port: int, setting: str
) -> None:
    """No proxy is in front of it, whatever is in front of the other port."""
    auth = await start_auth(**ADMIN_SETTINGS, **{setting: unused_port}, trusted_proxies=1)
    rows.user()
    url = URL(f"http://127.0.0.1:{unused_port}{at(USER, '/block')}", encoded=True)
    async with auth.session.post(url, headers={**bearer(ADMIN), "X-Forwarded-For": "192.0.2.9"}) as response:
        assert response.status == 200
    assert rows.run("select source from audit_log") == [("127.0.0.1",)]


async def test_a_viewer_looks_and_changes_nothing(admin_auth: Auth, rows: Rows) -> None:
    rows.user()
    assert (await ask(admin_auth, "GET", "/user", VIEWER))[0] == 200
    for method, rest in [("POST", "/block"), ("POST", "/unblock"), ("POST", "/budget"), ("DELETE", "")]:
        status, body, _ = await ask(admin_auth, method, at(USER, rest), VIEWER, json={"service_type": "s2s"})
        assert (status, body["error"]) == (403, "forbidden")
    ((who, counts),) = (await rows.refusals(admin_auth)).items()
    assert who == ("ui", "forbidden", USER, "127.0.0.1")
    assert (counts["attempts"], counts["POST /user/{user_id}/block"]) == (4, 1)


async def test_a_user_as_the_contract_has_it(admin_auth: Auth, rows: Rows) -> None:
    rows.user()
    rows.request("one", cost=1_234_567)
    rows.request("two", cost=1)
    rows.request("last week", cost=10**9, ago="7 days")
    status, body, headers = await ask(admin_auth, "GET", at(USER))
    assert status == 200
    assert headers["Cache-Control"] == "no-store"
    times = {name: body.pop(name) for name in ("created_at", "last_seen_at", "resets_at")}
    assert all(value.endswith("Z") and "T" in value for value in times.values())
    assert times["resets_at"].endswith("T00:00:00Z")
    assert body == {
        "user_id": USER,
        "service_type": "ai",
        "budget_tier": "ai",
        "blocked": False,
        "spent_usd": 0.001234568,
        "reserved_usd": 0,
        "max_budget_usd": 0.1,
    }


async def test_what_the_gateways_count_goes_before_the_ledger(admin_auth: Auth, rows: Rows, redis_url: str) -> None:
    rows.user()
    rows.request("one", cost=5)
    redis = connect(redis_url)
    run_id = (await redis.info("server"))["run_id"]
    seconds, _ = await redis.time()
    state = {"ep": run_id, "tier": "ai", "dur": 86400, "idx": seconds // 86400, "spent": 20_000_000, "res": 7_000_000}
    await redis.hset(layout.user_key(USER), mapping=state)
    _, body, _ = await ask(admin_auth, "GET", at(USER))
    assert (body["spent_usd"], body["reserved_usd"]) == (0.02, 0.007)
    await redis.hset(layout.user_key(USER), "ep", "of another life of Redis")
    _, body, _ = await ask(admin_auth, "GET", at(USER))
    assert (body["spent_usd"], body["reserved_usd"]) == (5e-9, 0)
    await redis.aclose()


async def test_pages_by_cursor_see_every_user_once(admin_auth: Auth, rows: Rows) -> None:
    for number in range(25):
        rows.user(f"{number:032x}:ai")
    seen: list[str] = []
    path = "/user?limit=10"
    for _ in range(3):
        _, body, _ = await ask(admin_auth, "GET", path)
        assert body["estimated_total"] == 25
        seen += [user["user_id"] for user in body["users"]]
        path = f"/user?limit=10&cursor={body['next_cursor']}"
    assert body["next_cursor"] is None
    assert seen == sorted(f"{number:032x}:ai" for number in range(25))


async def test_search_is_by_the_start_of_the_id_byte_by_byte(admin_auth: Auth, rows: Rows) -> None:
    for user_id in (DEVICE_USER, USER, f"{UID}:s2s", f"{'0' * 31}_:ai", f"{'f' * 32}:ai"):
        rows.user(user_id)
    for q, found in [
        ("", 5),
        (UID, 2),
        (f"{UID}:s", 1),
        ("+/", 1),
        ("%", 0),
        ("_", 0),
        ("0", 3),
        ("F", 0),
        ("\x00", 0),
        ("ü", 0),
    ]:
        status, body, _ = await ask(admin_auth, "GET", f"/user?q={quote(q, safe='')}")
        assert (status, len(body["users"]), body["estimated_total"]) == (200, found, found), q


async def test_a_malformed_query_is_a_400(admin_auth: Auth) -> None:
    for query in [
        "limit=0",
        "limit=201",
        "limit=-1",
        "limit=1e2",
        "limit=٣",
        "limit=9999999999",
        "limit=1&limit=2",
        "q=a&q=b",
        "cursor=x",
        "cursor=WyJhIl0",
        "cursor=bnVsbA",
        "cursor=%ff",
        "cursor=WyIiLCIiLCIiXQ",
    ]:
        status, body, _ = await ask(admin_auth, "GET", f"/user?{query}")
        assert (status, body["error"]) == (400, "invalid_request"), query


async def test_counts_win_over_a_user_of_that_name(admin_auth: Auth, rows: Rows) -> None:
    rows.user()
    rows.user(f"{UID}:memories")
    rows.user(f"{'1' * 32}:ai")
    status, body, _ = await ask(admin_auth, "GET", "/user/counts-by-service-type")
    assert (status, body) == (200, {"ai": 2, "memories": 1, "s2s": 0})


async def test_a_key_may_come_in_the_fields_of_the_single_process_mlpa(admin_auth: Auth) -> None:
    for field in ["Authorization", "master_key", "mlpa_ui_access_key", "MASTER_KEY"]:
        for key, status in ((ADMIN, 200), (VIEWER, 200), ("wrong", 401)):
            assert (await admin_auth.ask("GET", "/user", headers={field: f"Bearer {key}"}))[0] == status, field
        assert (await admin_auth.ask("GET", "/user", headers={field: ADMIN}))[0] == 401, field
        status, _, _ = await admin_auth.ask("POST", at(USER, "/block"), headers={field: f"Bearer {VIEWER}"})
        assert status == 403, field


async def test_a_right_key_does_not_make_up_for_a_wrong_authorization(admin_auth: Auth) -> None:
    headers = {"Authorization": "Bearer wrong", "master_key": f"Bearer {ADMIN}"}
    assert (await admin_auth.ask("GET", "/user", headers=headers))[0] == 401


async def test_it_shows_how_full_each_pool_is(start_auth: StartAuth, rows: Rows, tmp_path: Any) -> None:
    row = (
        '[[service_type]]\nname="{}"\nmax_budget="1"\nduration="1d"\nrpm=1\ntpm=1\nmodels=["*"]\n'
        'credentials=["fxa"]\nfxa_scopes=["profile:uid"]\nfxa_client_ids=["*"]\nmax_users=2\npool="signed-in"\n'
    )
    table = tmp_path / "types.toml"
    table.write_text(row.format("ai") + row.format("memories"))
    auth = await start_auth(**ADMIN_SETTINGS, service_types=table)
    for scope in ("ai", "memories"):
        assert (await auth.exchange(auth.fxa_token(UID), scope=scope))[0] == 200
    status, body, _ = await ask(auth, "GET", "/user/signup-cap-status", VIEWER)
    assert (status, body) == (200, [{"pool": "signed-in", "users": 1, "max_users": 2}])
    assert (await auth.exchange(auth.fxa_token("1" * 32), scope="memories"))[0] == 200
    status, body = await auth.exchange(auth.fxa_token("2" * 32), scope="ai")
    assert (status, body["error"]) == (403, "max_users_reached")
    assert (await ask(auth, "DELETE", at(f"{'1' * 32}:memories")))[0] == 204
    assert (await auth.exchange(auth.fxa_token("2" * 32), scope="ai"))[0] == 200


async def test_who_is_not_there_is_a_404(admin_auth: Auth) -> None:
    for user_id in ["nobody", "a/b", "<script>", "é", "\x00", "%", "..", "counts"]:
        for method, rest in [("GET", ""), ("GET", "/ledger"), ("POST", "/block"), ("POST", "/unblock"), ("DELETE", "")]:
            status, body, _ = await ask(admin_auth, method, at(user_id, rest))
            assert (status, body["error"]) == (404, "not_found"), user_id


async def test_a_block_holds_for_the_identity_and_is_lifted_again(admin_auth: Auth, rows: Rows, redis_url: str) -> None:
    rows.user(DEVICE_USER)
    rows.user(f"{KEY_ID}:s2s")
    redis = connect(redis_url)
    status, body, _ = await ask(admin_auth, "POST", at(DEVICE_USER, "/block"), NAMED, json={"reason": "spam"})
    assert (status, body["blocked"]) == (200, True)
    _, other, _ = await ask(admin_auth, "GET", at(f"{KEY_ID}:s2s"))
    assert other["blocked"]
    assert (await decisions.known(redis, KEY_ID, "ai")).standing is Standing.BLOCKED
    status, body, _ = await ask(admin_auth, "POST", at(DEVICE_USER, "/unblock"))
    assert (status, body["blocked"]) == (200, False)
    assert (await decisions.known(redis, KEY_ID, "ai")).standing is Standing.GOOD
    assert rows.run("select count(*) from redis_changes") == [(0,)]
    good, blocked = {"blocked": False, "reason": None}, {"blocked": True, "reason": "spam"}
    assert rows.audit() == [
        ("jane", "user.block", DEVICE_USER, good, blocked),
        ("admin", "user.unblock", DEVICE_USER, blocked, good),
    ]
    await redis.aclose()


async def test_a_malformed_reason_is_a_400(admin_auth: Auth, rows: Rows) -> None:
    rows.user()
    for body in [b"{", b"[]", b'{"reason": 1}', b'{"reason":"\\u0000"}', b'{"reason":"\\ud800"}']:
        status, answer, _ = await ask(admin_auth, "POST", at(USER, "/block"), data=body)
        assert (status, answer["error"]) == (400, "invalid_request"), body


async def test_a_blocked_user_is_told_so_at_the_exchange(admin_auth: Auth) -> None:
    subject = admin_auth.fxa_token(UID)
    assert (await admin_auth.exchange(subject))[0] == 200
    assert (await ask(admin_auth, "POST", at(USER, "/block")))[0] == 200
    status, body = await admin_auth.exchange(subject)
    assert (status, body["error"]) == (403, "access_denied")
    assert (await ask(admin_auth, "POST", at(USER, "/unblock")))[0] == 200
    assert (await admin_auth.exchange(subject))[0] == 200


async def test_a_tier_gives_the_money_of_its_row(start_auth: StartAuth, rows: Rows, tmp_path: Any) -> None:
    table = tmp_path / "types.toml"
    table.write_text(toml("ai") + toml("gold", max_budget="5", duration="30d"))
    auth = await start_auth(**ADMIN_SETTINGS, service_types=table)
    rows.user()
    rows.request("old", cost=400_000_000, ago="12 hours")
    status, body, _ = await ask(auth, "POST", at(USER, "/budget"), json={"service_type": "gold"})
    assert (status, body["service_type"], body["budget_tier"], body["max_budget_usd"]) == (200, "ai", "gold", 5)
    status, body, _ = await ask(auth, "POST", at(USER, "/budget"), json={"service_type": "lead"})
    assert (status, body["error"]) == (422, "unknown_service_type")
    for malformed in (b"", b"{}", b'{"service_type":null}', b'{"service_type":"ai","service_type":"gold"}'):
        assert (await ask(auth, "POST", at(USER, "/budget"), data=malformed))[0] == 400
    assert rows.audit() == [("admin", "user.tier", USER, {"budget_tier": "ai"}, {"budget_tier": "gold"})]


async def test_an_erased_user_frees_a_place_and_leaves_its_ledger_under_a_digest(admin_auth: Auth, rows: Rows) -> None:
    assert (await admin_auth.exchange(admin_auth.fxa_token(UID)))[0] == 200
    rows.request("one", cost=1500, outcome="timeout")
    status, body, _ = await ask(admin_auth, "DELETE", at(USER))
    assert (status, body) == (204, None)
    assert (await ask(admin_auth, "GET", at(USER)))[0] == 404
    assert (await ask(admin_auth, "DELETE", at(USER)))[0] == 404
    assert (await ask(admin_auth, "GET", "/user/counts-by-service-type"))[1]["ai"] == 0
    assert (await ask(admin_auth, "GET", at(USER, "/ledger")))[0] == 404
    ((digest,),) = rows.run("select digest from erasures")
    status, body, _ = await ask(admin_auth, "GET", at(f"{digest}:ai", "/ledger"))
    assert status == 200
    assert [(row["id"], row["cost_usd"], row["outcome"]) for row in body["rows"]] == [("one", 0.0000015, "timeout")]
    # Redis has forgotten the user too: who comes back is counted again
    assert (await admin_auth.exchange(admin_auth.fxa_token(UID)))[0] == 200
    assert (await ask(admin_auth, "GET", "/user/counts-by-service-type"))[1]["ai"] == 1


async def test_the_ledger_is_newest_first(admin_auth: Auth, rows: Rows) -> None:
    rows.user()
    for number in range(5):
        rows.request(f"row{number}", ago=f"{number} minutes")
    _, body, _ = await ask(admin_auth, "GET", at(USER, "/ledger?limit=3"))
    assert [row["id"] for row in body["rows"]] == ["row0", "row1", "row2"]
    assert body["rows"][0]["request_id"] == "r-row0"


async def test_on_an_ops_port_the_main_one_has_neither_users_nor_console(
    start_auth: StartAuth, unused_port: int
) -> None:
    auth = await start_auth(**ADMIN_SETTINGS, ops_port=unused_port)
    for path in ("/user", "/admin", "/admin/sign-in", "/admin/static/console.css"):
        assert (await ask(auth, "GET", path))[0] == 404


@pytest.mark.parametrize("with_ops_port", [False, True])
async def test_administration_has_a_port_apart_from_metrics(
    start_auth: StartAuth, unused_ports: Callable[[], int], *, with_ops_port: bool
) -> None:
    ports = {"admin_port": unused_ports(), **({"ops_port": unused_ports()} if with_ops_port else {})}
    auth = await start_auth(**ADMIN_SETTINGS, **ports)
    places = {"main": auth.url, **{name: f"http://127.0.0.1:{port}" for name, port in ports.items()}}
    paths = {operation.path for operation in OPERATIONS if operation.method == "GET" and "{" not in operation.path}
    assert {"/user", "/device", "/audit", "/service-types", "/admin", "/admin/costs.csv"} <= paths
    served: dict[str, set[str]] = {}
    for name, base in places.items():
        for path in (*paths, "/metrics", "/health/liveness"):
            async with auth.session.get(base + path, headers=bearer(ADMIN), allow_redirects=False) as response:
                if response.status != 404:
                    served.setdefault(path, set()).add(name)
    metrics = served.pop("/metrics")
    assert metrics == {"ops_port" if with_ops_port else "main"}
    assert served.pop("/health/liveness") == set(places)
    assert served == {path: {"admin_port"} for path in paths}
    assert (await auth.ask("POST", f"/user/{USER}/block", headers=bearer(ADMIN)))[0] == 404


async def test_an_export_is_all_that_is_held_by_user_or_by_identity(admin_auth: Auth, rows: Rows) -> None:
    assert (await ask(admin_auth, "GET", at(USER, "/export")))[0] == 404
    assert (await admin_auth.exchange(admin_auth.fxa_token(UID)))[0] == 200
    for number in range(1203):
        rows.request(f"row{number:04d}")
    status, body, _ = await ask(admin_auth, "GET", at(UID, "/export"))
    assert status == 200
    held = body["postgresql"]
    assert sorted(row["id"] for row in held["ledger"]) == [f"row{number:04d}" for number in range(1203)]
    assert [row["user_id"] for row in held["users"]] == [USER]
    assert held["user_spend"][0]["spent_nano"] == 1203 * 1000
    assert body["redis"]["fxa"][0]["uid"] == UID
    assert any(UID in key for key in body["redis"])
    assert USER in body["litellm"]["customers"]
    assert rows.audit() == [("admin", "user.export", UID, None, None)]
    status, again, _ = await ask(admin_auth, "GET", at(USER, "/export"))
    assert (status, len(again["postgresql"]["audit_log"])) == (200, 1)
    assert (await ask(admin_auth, "GET", at(USER, "/export"), VIEWER))[0] == 403


async def test_a_block_that_outlives_an_erasure_can_be_ended(admin_auth: Auth, rows: Rows) -> None:
    assert (await admin_auth.exchange(admin_auth.fxa_token(UID)))[0] == 200
    assert (await ask(admin_auth, "POST", at(USER, "/block")))[0] == 200
    assert (await ask(admin_auth, "DELETE", at(USER)))[0] == 204
    status, body = await admin_auth.exchange(admin_auth.fxa_token(UID))
    assert (status, body["error"]) == (403, "access_denied")
    assert (await ask(admin_auth, "POST", at(USER, "/unblock")))[:2] == (204, None)
    assert (await ask(admin_auth, "POST", at(USER, "/unblock")))[0] == 404
    assert (await admin_auth.exchange(admin_auth.fxa_token(UID)))[0] == 200
    assert [entry[1] for entry in rows.audit()] == ["user.block", "user.erase", "user.unblock"]
    assert all(UID not in str(entry) for entry in rows.audit())


async def test_an_erased_identity_can_be_blocked_before_it_returns(admin_auth: Auth, rows: Rows) -> None:
    assert (await admin_auth.exchange(admin_auth.fxa_token(UID)))[0] == 200
    assert (await ask(admin_auth, "DELETE", at(USER)))[0] == 204
    for name in (USER, UID):
        body = {"reason": f"{UID} comes again and again"}
        assert (await ask(admin_auth, "POST", at(name, "/block"), json=body))[:2] == (204, None)
    status, answer = await admin_auth.exchange(admin_auth.fxa_token(UID), scope="s2s")
    assert (status, answer["error"]) == (403, "access_denied")
    assert UID not in str(rows.run("select * from identities") + rows.audit())
    assert "comes again" in str(rows.run("select blocked_reason from identities"))
    assert (await ask(admin_auth, "POST", at(USER, "/unblock")))[0] == 204
    assert (await admin_auth.exchange(admin_auth.fxa_token(UID)))[0] == 200
    assert (await ask(admin_auth, "POST", at(f"{UID}:s2s", "/block")))[0] == 404, "it has returned, as another user"
