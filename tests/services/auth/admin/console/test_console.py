"""The console as somebody without JavaScript meets it."""

from __future__ import annotations

import asyncio
import base64
import re
from pathlib import Path
from urllib.parse import quote

from yarl import URL

from services.auth.admin.access import cookies, sessions
from services.auth.admin.console import pages
from services.auth.tokens.key_ring import ensure_key
from shared.stores.redis import connect
from tests.services.auth.admin.conftest import ADMIN, ADMIN_SETTINGS, UID, USER, People, Person, Rows, bearer
from tests.services.auth.conftest import Auth, StartAuth, many
from tests.support.service_types import toml

PAGES = [
    *("/admin", "/admin?span=30d", "/admin/users", "/admin/devices", "/admin/audit", "/admin/service-types"),
    *("/admin/requests", "/admin/costs", "/admin/models"),
]
HERE = f"/admin/users/{quote(USER, safe='')}"
KEY_ID = "+/" + "A" * 41 + "="
HOSTILE = [
    "<script>alert(1)</script>:ai",
    '"><img src=x onerror=alert(1)>:ai',
    "' or 1=1 --:ai",
    "100%25%s%(x)s;drop table users:ai",
    "\u202e\u2603 ünï/%2e%2e/\n\t:ai",
    "javascript:alert(1):ai",
]


async def test_who_is_not_signed_in_is_asked_to_and_comes_back_to_the_page(admin_auth: Auth, people: People) -> None:
    person = await people.come(admin_auth)
    for path in [*PAGES, HERE]:
        page = await person.get(path, follow=False)
        assert (page.status, page.headers["Location"]) == (303, f"/admin/sign-in?next={quote(path, safe='')}")
    form = await person.get("/admin/devices")
    page = await person.submit(form, "/admin/sign-in?next=%2Fadmin%2Fdevices", key=ADMIN)
    assert (page.status, page.url) == (200, "/admin/devices")


async def test_signing_in_leads_nowhere_else(admin_auth: Auth, people: People) -> None:
    for there in [
        "https://evil.test",
        "//evil.test",
        "/adminevil",
        "/admin/\\evil",
        "/admin\r\nX: y",
        "/admin/sign-out",
    ]:
        person = await people.come(admin_auth)
        form = await person.get("/admin/sign-in")
        page = await person.submit(form, f"/admin/sign-in?next={quote(there, safe='')}", key=ADMIN, follow=False)
        assert (page.status, page.headers["Location"]) == (303, "/admin"), there


async def test_a_wrong_key_is_refused_and_the_attempt_recorded_without_it(
    admin_auth: Auth, people: People, rows: Rows
) -> None:
    person = await people.come(admin_auth)
    page = await person.sign_in("not-the-key")
    assert page.status == 401
    assert "not one of the admin keys" in page.words
    assert "not-the-key" not in page.text
    assert await rows.refusals(admin_auth) == {
        ("unknown", "admin_key.refused", "admin keys", "127.0.0.1"): {"attempts": 1, "console": 1}
    }
    assert "not-the-key" not in str(rows.run("select * from audit_log"))


async def test_the_cookies_are_for_this_console_alone(start_auth: StartAuth, people: People, tmp_path: Path) -> None:
    ensure_key(tmp_path / "keys")
    auth = await start_auth(
        **ADMIN_SETTINGS,
        mlpa_debug=False,
        mlpa_issuer="https://auth.test",
        service_types=Path("shared/domain/development.toml"),
        challenge_secret="c" * 32,
        fxa_cache_secret="f" * 32,
        erasure_secret="e" * 32,
    )
    person = await people.come(auth)
    form = await person.get("/admin/sign-in")
    set_cookies = form.headers.getall("Set-Cookie")
    token = re.match(rf"__Host-{cookies.SIGN_IN}=([^;]+)", set_cookies[0])
    assert token
    async with person.session.post(
        f"{auth.url}/admin/sign-in",
        data={"csrf": form.csrf, "key": ADMIN},
        cookies={f"__Host-{cookies.SIGN_IN}": token[1]},
        allow_redirects=False,
    ) as response:
        set_cookies += response.headers.getall("Set-Cookie")
    assert len(set_cookies) == 3
    for cookie in set_cookies:
        assert cookie.startswith(("__Host-mlpa_admin=", "__Host-mlpa_sign_in="))
        assert {"HttpOnly", "Secure", "Path=/", "SameSite=Strict"} <= set(cookie.split("; "))
        assert "Domain" not in cookie
    session = next(cookie for cookie in set_cookies if cookie.startswith("__Host-mlpa_admin=")).partition(";")[0]
    name, _, value = session.partition("=")
    for sent, status in [(name, 200), ("mlpa_admin", 303)]:
        async with auth.session.get(f"{auth.url}/admin", cookies={sent: value}, allow_redirects=False) as response:
            assert response.status == status, "what another host of the site may have set is not looked at"


async def test_a_form_from_elsewhere_does_nothing(admin_auth: Auth, people: People, rows: Rows) -> None:
    rows.user()
    person = await people.come(admin_auth)
    assert (await person.post("/admin/sign-in", key=ADMIN)).status == 403
    form = await person.get("/admin/sign-in")
    assert (await person.post("/admin/sign-in", key=ADMIN, csrf=form.csrf[:-1] + "!")).status == 403
    await person.sign_in()
    actions = ("block", "unblock", "tier", "exception", "exception/end", "erase")
    for path in (*(f"{HERE}/{action}" for action in actions), "/admin/sign-out"):
        for token in ({}, {"csrf": "x"}, {"csrf": form.csrf}):
            assert (await person.post(path, tier="s2s", extra="1", hours="1", **token)).status == 403, path
    page = await person.get(HERE)
    async with person.session.post(
        f"{admin_auth.url}{HERE}/erase", data={"csrf": page.csrf}, headers={"Sec-Fetch-Site": "cross-site"}
    ) as response:
        assert response.status == 403
    assert [entry[1] for entry in rows.audit()] == ["sign_in"]


async def test_block_unblock_tier_and_erase_say_what_they_did(person: Person, rows: Rows) -> None:
    rows.user()
    rows.user(f"{UID}:s2s")
    confirm = await person.get(f"{HERE}/block")
    assert "1 more: s2s" in confirm.words
    page = await person.submit(confirm, f"{HERE}/block", reason="  sold\n their key <b>  ")
    assert page.url == HERE
    assert "Blocked, in all service types" in page.words
    assert "“sold their key <b>”" in page.words
    assert "user_blocked" in page.words
    again = await person.get(HERE)
    assert "Blocked, in all service types" not in again.words
    page = await person.submit(again, f"{HERE}/unblock")
    assert "Unblocked." in page.words
    page = await person.submit(page, f"{HERE}/tier", tier="memories")
    assert "are now those of memories" in page.words
    page = await person.submit(page, f"{HERE}/tier", tier="no such")
    assert page.status == 422
    page = await person.submit(await person.get(f"{HERE}/erase"), f"{HERE}/erase")
    assert "Erased." in page.words
    assert UID not in page.text
    assert (await person.get(HERE)).status == 404
    actions = ["sign_in", "user.block", "user.unblock", "user.tier", "user.erase"]
    assert [entry[:2] for entry in rows.audit()] == [("admin", action) for action in actions]
    log = await person.get("/admin/audit")
    assert "sold their key <b>" in log.words
    assert "<b>sold" not in log.text


async def test_an_exception_is_made_replaced_and_ended_on_the_users_page(person: Person, rows: Rows) -> None:
    rows.user()
    page = await person.get(HERE)
    assert "None: the budget and the rates of the tier hold." in page.words
    page = await person.submit(page, f"{HERE}/exception", extra="1.5", hours="2", reason="a <b> fair")
    assert (page.url, "The exception holds for 2 hours." in page.words) == (HERE, True)
    assert "$1.50 more in each period until" in page.words
    assert "“a <b> fair”" in page.words
    assert rows.run(
        "select extra_nano, without_rates, round(extract(epoch from ends_at - now()) / 60) from exceptions"
    ) == [(1_500_000_000, False, 120)]
    page = await person.submit(page, f"{HERE}/exception", extra="", hours="744", without_rates="1")
    assert "no rates until" in page.words
    assert "more in each period until" not in page.words
    page = await person.submit(page, f"{HERE}/exception/end")
    assert "The exception has ended." in page.words
    assert "None: the budget and the rates of the tier hold." in page.words
    assert rows.run("select count(*) from exceptions") == [(0,)]
    assert [entry[1] for entry in rows.audit()] == ["sign_in"] + ["user.exception"] * 3
    assert "Changed the exception by admin" in page.words


async def test_an_exception_that_can_not_be_is_refused(person: Person, rows: Rows) -> None:
    rows.user()
    for fields in [
        {"extra": "1", "hours": "0"},
        {"extra": "1", "hours": "745"},
        {"extra": "1", "hours": "-1"},
        {"extra": "1", "hours": "1.5"},
        {"extra": "1", "hours": "²"},
        {"extra": "1"},
        {"extra": "-1", "hours": "1"},
        {"extra": "much", "hours": "1"},
        {"extra": "10001", "hours": "1"},
        {"extra": "0", "hours": "1"},
        {"extra": "", "hours": "1"},
        {"extra": "1", "hours": "1", "reason": "x" * 501},
    ]:
        page = await person.submit(await person.get(HERE), f"{HERE}/exception", **fields)
        assert page.status == 400, fields
        assert rows.run("select count(*) from exceptions") == [(0,)], fields


async def test_a_revoked_device_stays_out(person: Person, rows: Rows, redis_url: str) -> None:
    rows.device(KEY_ID)
    rows.user(f"{KEY_ID}:ai")
    path = f"/admin/devices/{quote(KEY_ID, safe='')}/revoke"
    confirm = await person.get(path)
    assert "can't be undone" in confirm.words
    assert (await person.submit(confirm, path, reason="stolen", follow=False)).status == 303
    assert rows.run("select revoked_reason from devices where revoked_at is not null") == [("stolen",)]
    redis = connect(redis_url)
    keys = [key async for key in redis.scan_iter(f"mlpa:*i:{KEY_ID}")]
    assert await redis.hget(keys[0], "blk") == b"revoked"
    (session,) = [await redis.hgetall(key) async for key in redis.scan_iter("mlpa:session:*")]
    assert b"Revoked" in session[b"flash"]
    assert KEY_ID.encode() not in session[b"flash"], "an erasure could not remove it from there"
    await redis.aclose()
    assert "Revoked, in all service types" in (await person.get("/admin/devices")).words
    user = await person.get(f"/admin/users/{quote(KEY_ID + ':ai', safe='')}")
    assert "Device revoked" in user.words
    assert "user_blocked The device is revoked." in user.words, "which is what the gateways answer"
    assert "invalid_token" not in user.words
    assert "This device is revoked" in (await person.get(path)).words
    assert rows.audit()[-1] == (
        "admin",
        "device.revoke",
        KEY_ID,
        {"revoked": False, "reason": None},
        {"revoked": True, "reason": "stolen"},
    )


async def test_a_viewer_sees_everything_but_no_buttons(viewer: Person, admin_auth: Auth, rows: Rows) -> None:
    rows.user()
    rows.device(KEY_ID)
    for path in [*PAGES, HERE, f"{HERE}/block", f"{HERE}/erase"]:
        page = await viewer.get(path)
        assert page.status == 200
        assert re.findall(r'<form[^>]*method="post"[^>]*action="([^"]*)"', page.text) == ["/admin/sign-out"]
        assert "Revoke…" not in page.text
        assert "Block…" not in page.text
    changes = ("block", "unblock", "tier", "exception", "exception/end", "erase")
    for path in (f"{HERE}/{what}" for what in changes):
        page = await viewer.submit(await viewer.get(HERE), path, tier="s2s", extra="1", hours="1")
        assert page.status == 403
        assert "may view, but not change" in page.words
    tried = {f"POST /admin/users/{{user_id}}/{what}": 1 for what in changes}
    assert await rows.refusals(admin_auth) == {("ui", "forbidden", USER, "127.0.0.1"): {"attempts": 6, **tried}}
    assert {entry[1] for entry in rows.audit()} == {"sign_in", "forbidden"}


async def test_hostile_names_stay_text(person: Person, rows: Rows) -> None:
    for user_id in HOSTILE:
        rows.user(user_id)
        rows.request(user_id, user_id, model=f"{user_id}<b>", request_id=f"{user_id}<i>", outcome=f"{user_id}<u>")
        here = f"/admin/users/{quote(user_id, safe='')}"
        page = await person.submit(await person.get(f"{here}/block"), f"{here}/block", reason=user_id)
        assert (page.status, page.url.partition("?")[0]) == (200, here), user_id
        for path in [*PAGES, here, f"{here}/block", f"{here}/erase", f"/admin/users?q={quote(user_id[:9])}"]:
            page = await person.get(path)
            assert page.status == 200, user_id
            assert not re.search(r"<(script|b>:|i>:|u>:|img src=x)", page.text), path
            assert not re.search(r'(href|action|src)="(?!/|#)', page.text), user_id
        listed = await person.get("/admin/users")
        assert " ".join(user_id.split()) in listed.words, user_id
        assert (await person.submit(await person.get(here), f"{here}/unblock")).status == 200, user_id
        assert (await person.submit(await person.get(here), f"{here}/erase")).status == 200, user_id
        assert rows.run("select count(*) from redis_changes") == [(0,)], user_id


async def test_a_name_is_not_a_template(person: Person, rows: Rows) -> None:
    rows.user("{{ 7 * 7 }}{% raw %}:ai")
    page = await person.get("/admin/users")
    assert "{{ 7 * 7 }}{% raw %}:ai" in page.words


async def test_every_page_has_a_strict_policy_and_no_inline_code(person: Person, rows: Rows) -> None:
    rows.user()
    rows.request("one")
    for path in [*PAGES, HERE, f"{HERE}/block", f"{HERE}/erase", "/admin/nothing", "/admin/sign-in"]:
        page = await person.get(path)
        assert page.headers["Content-Security-Policy"] == (pages.POLICY), path
        assert page.headers["Cache-Control"] == "no-store"
        assert page.headers["X-Frame-Options"] == "DENY"
        assert not re.search(r"<script|\sstyle=|\son[a-z]+=|<style", page.text), path
        assert len(re.findall(r"<h1", page.text)) == 1
    assert "unsafe" not in pages.POLICY


async def test_what_pages_load_comes_from_here_and_may_be_kept(person: Person) -> None:
    page = await person.get("/admin")
    assets = set(re.findall(r'(?:href|src)="(/admin/static/[^"]+)"', page.text))
    assert len(assets) == 3
    for path in assets:
        asset = await person.get(path)
        assert asset.status == 200
        assert "immutable" in asset.headers["Cache-Control"]
    assert "immutable" not in (await person.get("/admin/static/console.css?v=older")).headers["Cache-Control"]
    for path in ("/admin/static/..%2Fviews.py", "/admin/static/__init__.py", "/admin/static/none.css"):
        assert (await person.get(path)).status == 404


async def test_users_can_be_sorted_searched_and_paged_back_and_forth(person: Person, rows: Rows) -> None:
    rows.run(
        "insert into users (user_id, identity, service_type, budget_tier, created_at, last_seen_at) "
        "select lpad(to_hex(n), 32, '0') || ':ai', lpad(to_hex(n), 32, '0'), 'ai', 'ai', now() - interval '1 h' * n, "
        "now() - interval '1 h' * mod(n, 60) from generate_series(1, 120) n"
    )

    def ids(text: str) -> list[int]:
        return [int(found, 16) for found in re.findall(r">([0-9a-f]{32}):ai</a>", text)]

    def link(text: str, rel: str) -> str:
        found = re.search(rf'rel="{rel}" href="([^"]+)"', text)
        assert found
        return found[1].replace("&amp;", "&")

    for query, whole in [
        ("", list(range(1, 121))),
        ("?order=desc", list(range(120, 0, -1))),
        ("?sort=created", list(range(120, 0, -1))),
        ("?sort=created&order=desc", list(range(1, 121))),
        ("?sort=seen", sorted(range(1, 121), key=lambda n: (-(n % 60), n))),
        ("?sort=seen&order=desc", sorted(range(1, 121), key=lambda n: (n % 60, -n))),
        ("?list=newest", list(range(1, 121))),
        ("?list=seen&q=", sorted(range(1, 121), key=lambda n: (n % 60, -n))),
        ("?list=unseen", sorted(range(1, 121), key=lambda n: (-(n % 60), n))),
        (f"?q={'0' * 31}", list(range(1, 16))),
    ]:
        page = await person.get(f"/admin/users{query}")
        seen, texts = ids(page.text), [page.text]
        while 'rel="next"' in page.text:
            page = await person.get(link(page.text, "next"))
            seen += ids(page.text)
            texts.append(page.text)
        assert seen == whole, query
        for text in reversed(texts[:-1]):
            page = await person.get(link(page.text, "prev"))
            assert ids(page.text) == ids(text)
        assert 'rel="prev"' not in page.text


async def test_a_users_page_answers_what_was_spent_on_what(person: Person, rows: Rows) -> None:
    rows.user()
    for number in range(30):
        rows.request(f"n{number:02}", cost=2_000_000, ago=f"{number} seconds", request_id=f"ticket-{number}")
    page = await person.get(HERE)
    assert "$0.06 of $0.10 spent" in page.words
    assert "ticket-0" in page.words
    assert "ticket-29" not in page.words
    older = re.search(r'rel="next" href="([^"]+)"', page.text)
    assert older
    assert "ticket-29" in (await person.get(older[1])).words
    rows.request("last", cost=40_000_000)
    assert "budget_exceeded All of $0.10 is spent" in (await person.get(HERE)).words


async def test_searches_are_marked_among_a_users_requests_and_priced_among_the_service_types(
    start_auth: StartAuth, people: People, rows: Rows, tmp_path: Path
) -> None:
    table = tmp_path / "types.toml"
    table.write_text(toml("ai", search_tool="exa-search", search_cost="0.005") + toml("s2s"))
    person = await people.come(await start_auth(**ADMIN_SETTINGS, service_types=table))
    await person.sign_in()
    rows.user()
    rows.request("searched", model="exa-search", cost=5_000_000)
    rows.request("asked", model="gpt")
    words = (await person.get(HERE)).words
    assert "exa-search search chat" in words
    assert "gpt chat" in words
    assert "Search tool exa-search , $0.005 a search" in (await person.get("/admin/service-types")).words


async def test_empty_states_say_what_is_missing(person: Person) -> None:
    for path, words in [
        ("/admin/users", "There are no users yet."),
        ("/admin/users?q=x", "No user id starts with x"),
        ("/admin/devices", "There are no devices yet."),
        ("/admin/devices?q=x", "No key id starts with x"),
        ("/admin/audit?q=x", "No entries about x"),
        ("/admin", "No requests in this time."),
        ("/admin", "It doesn't answer at the address"),
    ]:
        assert words in (await person.get(path)).words


async def test_errors_are_pages_for_people_and_json_for_programs(person: Person, admin_auth: Auth) -> None:
    page = await person.get("/admin/users/nobody")
    assert (page.status, "There is no such user." in page.words) == (404, True)
    assert (await person.get("/admin/users?cursor=x")).status == 400
    far = base64.urlsafe_b64encode(b'["next","a","2024-01-01T00:00:00+16:00"]').decode().rstrip("=")
    assert (await person.get(f"/admin/users?sort=created&cursor={far}")).status == 200
    status, body, _ = await admin_auth.ask("GET", "/admin/nothing")
    assert (status, body["error"]) == (404, "not_found")
    assert (await person.post("/admin/users")).status == 405


async def test_signing_out_ends_the_session(person: Person, admin_auth: Auth, rows: Rows) -> None:
    jar = person.session.cookie_jar.filter_cookies(URL(f"{admin_auth.url}/admin"))
    held = {name: cookie.value for name, cookie in jar.items()}
    page = await person.submit(await person.get("/admin"), "/admin/sign-out")
    assert "You are signed out." in page.words
    async with admin_auth.session.get(f"{admin_auth.url}/admin", cookies=held, allow_redirects=False) as response:
        assert response.status == 303
    assert [entry[1] for entry in rows.audit()] == ["sign_in", "sign_out"]


async def test_a_session_ends_when_idle(person: Person, redis_url: str) -> None:
    redis = connect(redis_url)
    keys = [key async for key in redis.scan_iter("mlpa:session:*")]
    assert len(keys) == 1
    assert sessions.IDLE_SECONDS - 60 < await redis.ttl(keys[0]) <= sessions.IDLE_SECONDS
    await redis.expire(keys[0], 60)
    assert (await person.get("/admin")).url == "/admin"
    assert await redis.ttl(keys[0]) > 60
    await redis.aclose()


async def test_wrong_keys_are_slowed_down_and_a_right_one_always_gets_in(
    start_auth: StartAuth, people: People, rows: Rows
) -> None:
    auth = await start_auth(**ADMIN_SETTINGS, sign_in_limit_per_source=3)
    person = await people.come(auth)
    assert [(await person.sign_in("wrong")).status for _ in range(4)] == [401, 401, 401, 429]
    page = await person.sign_in("wrong")
    assert "Too many" in page.words
    assert int(page.headers["Retry-After"]) >= 1
    assert (await auth.ask("GET", "/user", headers=bearer("wrong")))[0] == 429, "the same limit"
    assert (await auth.ask("GET", "/user", headers=bearer()))[0] == 200
    assert (await person.sign_in(ADMIN)).status == 200
    assert list((await rows.refusals(auth)).values()) == [{"attempts": 6, "console": 5, "api": 1}]


async def test_nobody_locks_the_operators_out_from_however_many_addresses(
    start_auth: StartAuth, people: People, rows: Rows
) -> None:
    """Guesses from 20 addresses at both doors, and the operators meanwhile."""
    auth = await start_auth(**ADMIN_SETTINGS, sign_in_limit_per_source=5, trusted_proxies=1)
    person = await people.come(auth)
    form = await person.get("/admin/sign-in")
    places = asyncio.Semaphore(20)

    async def one(number: int) -> int:
        headers = {"X-Forwarded-For": f"198.51.100.{number % 20}"}
        async with places:
            if number % 20 == 0:
                return (await auth.ask("GET", "/user", headers=headers | bearer()))[0]
            if number % 2:
                return (await auth.ask("GET", "/user", headers=headers | bearer("wrong")))[0]
            data = {"csrf": form.csrf, "key": "wrong"}
            async with person.session.post(f"{auth.url}/admin/sign-in", data=data, headers=headers) as response:
                return response.status

    statuses = await many(200, one)
    assert [statuses[number] for number in range(0, 200, 20)] == [200] * 10
    assert statuses.count(401) + statuses.count(429) == 190
    assert statuses.count(429) >= 19, "of each address"
    assert (await person.sign_in(ADMIN)).status == 200
    found = await rows.refusals(auth)
    assert {source: counts["attempts"] for (_, _, _, source), counts in found.items()} == {
        f"198.51.100.{number}": 10 for number in range(1, 20)
    }


async def test_an_api_key_in_a_header_does_not_open_the_console(admin_auth: Auth) -> None:
    async with admin_auth.session.get(f"{admin_auth.url}/admin", headers=bearer(), allow_redirects=False) as response:
        assert response.status == 303
