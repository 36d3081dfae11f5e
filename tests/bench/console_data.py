"""A database as a busy deployment has it: users, devices, and a month of requests."""

from __future__ import annotations

from tests.support.sql import sql

_SEED = """
select setseed(0.5);
insert into users (user_id, identity, service_type, budget_tier, created_at, last_seen_at)
select identity || ':' || service_type, identity, service_type, service_type,
       now() - interval '90 days' * age, now() - interval '90 days' * age * random()
from (select case when number %% 10 = 0 then encode(sha256(number::text::bytea), 'base64') else md5(number::text) end
             as identity,
             (array['ai', 'ai', 'ai', 's2s', 'memories'])[1 + number %% 5] as service_type, random() as age
      from generate_series(1, %(users)s) as number) as one;
insert into devices (key_id, public_key, counter, environment, bundle_id, created_at, last_used_at)
select identity, '\\x04', (random() * 1000)::bigint, 'production', 'org.mozilla.ios.Firefox', created_at, last_seen_at
from users where length(identity) = 44;
insert into capacity (service_type, users) select service_type, count(*) from users group by service_type
on conflict (service_type) do update set users = excluded.users;
insert into ledger (id, request_id, user_id, service_type, model, purpose, prompt_tokens, completion_tokens, cost_nano,
                    period_seconds, period_index, outcome, admitted_at, settled_at)
select 'row' || number, gen_random_uuid(), user_id, service_type,
       (array['gpt-4o-mini', 'mistral-small', 'claude-haiku'])[1 + number %% 3], 'chat',
       prompt, completion, 300 * prompt + 1200 * completion, 86400,
       floor(extract(epoch from at) / 86400),
       case when number %% 40 = 0 then 'error' when number %% 23 = 0 then 'abort' else 'success' end,
       at, at + interval '1 second' * 8 * random()
from (select number, (1 + floor(power(random(), 2) * %(users)s))::bigint as place,
             (random() * 3000)::bigint as prompt, (random() * 900)::bigint as completion,
             now() - interval '30 days' * power(random(), 1.3) as at
      from generate_series(1, %(rows)s) as number) as request
join (select user_id, service_type, row_number() over (order by random()) as place from users) as one using (place)
order by at;
"""


def seed(url: str, *, users: int, rows: int) -> None:
    """Fill an empty database: users, a tenth of them on devices, and requests of the last 30 days."""
    sql(url, _SEED, users=users, rows=rows)
    sql(url, "vacuum (analyze) users", "vacuum (analyze) ledger", "vacuum (analyze) devices")
