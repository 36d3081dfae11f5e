-- Decides about one request, and reserves its worst case.
--@ use clock windows totals exception
--@ keys user identity token requests_window tokens_window leases outbox tombstone totals
--@ args epoch tier extra# *limits enforced
--@ args issued# id user_id full# least# empty# limit# least_grant# prompt_units# unit_price# scale# estimate# choices#
--@ args total prompt_bound details lease# room#? outbox_limit#
-- tier, limits: the row of the tier that the caller expects the user to have
-- issued: the unix second in which the access token was
-- extra: the nano-dollars of the exception that the caller expects
-- enforced: "0" if budget and rates refuse nobody, and lower no grant
-- full, least, empty: the cost of the limit asked for, of the least grant, and of the least grant without a prompt
-- prompt_units, unit_price (of a completion token of every choice): in 1/scale nano-dollars
-- total: "type:seconds" or empty; room: the rest of the total budget, empty when there is no limit
-- outbox_limit: rows that may wait for PostgreSQL; 0 for any number
-- Reply "full" | "load" | "tier NAME EXTRA" | "settled" | "blocked|revoked|token 0 RATES"
--       | "ok GRANT AMOUNT NOW WOULD RATES" | "streams|rpm|tpm|exceeded|large|reserved RETRY_MS RATES"
--       WOULD: the reason that would have refused the request if it were enforced, or "-"
--       RATES: requests used, ms to their reset, tokens used, ms to their reset
if outbox_limit > 0 and redis.call('HLEN', outbox) >= outbox_limit then return 'full' end
local user_epoch, user_tier, excepted, user_duration, period, spent, reserved, open, estimated, used_tokens, newest =
  unpack(redis.call('HMGET', user, EPOCH, TIER, EXCEPTION, DURATION, PERIOD, SPENT, RESERVED, OPEN, ESTIMATED,
    USED_TOKENS, NEWEST))
local identity_epoch, standing, tokens_from = unpack(redis.call('HMGET', identity, EPOCH, STANDING, TOKENS_FROM))
if user_epoch ~= epoch or identity_epoch ~= epoch then return 'load' end
if redis.call('EXISTS', tombstone) == 1 then return 'settled' end
local extra_now, without_rates = exception(excepted)
if user_tier ~= tier or extra_now ~= extra then return 'tier ' .. user_tier .. ' ' .. int(extra_now) end
if tonumber(user_duration) ~= duration then return 'load' end
budget = budget + extra

spent, reserved, open, estimated = tonumber(spent), tonumber(reserved), tonumber(open), tonumber(estimated)
local current = period_of(now, duration)
if current ~= tonumber(period) then
  -- After the clock went back, the user may have spent in this period before: only the ledger knows
  if current <= tonumber(newest) then return 'load' end
  spent, reserved = 0, 0
  redis.call('HSET', user, PERIOD, current, NEWEST, current, SPENT, 0, RESERVED, 0)
end
period = current

local requests, requests_reset = 0, 0
if rpm > 0 then
  redis.call('ZREMRANGEBYSCORE', requests_window, '-inf', now - WINDOW)
  requests = redis.call('ZCARD', requests_window)
  if requests > 0 then
    requests_reset = reset_of(requests_window)
  end
end

local tokens, tokens_reset, left = tonumber(used_tokens), 0, 0
if tokens > 0 then
  tokens, left = tokens_in(tokens_window, tokens)
  if left > 0 then
    redis.call('ZREMRANGEBYSCORE', tokens_window, '-inf', now - WINDOW)
  end
  tokens_reset = reset_of(tokens_window)
  if tokens_reset == 0 then
    tokens = 0
  end
  redis.call('HSET', user, USED_TOKENS, tokens)
end
tokens = tokens + estimated

local function answer(...)
  return table.concat({...}, ' ') .. ' ' .. table.concat(
    {int(requests), int(requests_reset), int(tokens), int(tokens_reset)}, ' ')
end

local revoked = redis.call('EXISTS', token) == 1 or issued < tonumber(tokens_from or 0)
local available = math.min(budget - spent - reserved, room or math.huge)
local skipped = {}
--@ include decide
local would = '-'
if enforced == '0' and standing == GOOD and not revoked then
  would, reason, available = reason or '-', nil, room or math.huge
end
if reason then return answer(reason, int(wait)) end

local grant, amount = limit, full
if full > available then
  grant, amount = least_grant, least
  local affordable = math.floor((available * scale - prompt_units) / unit_price)
  if affordable > least_grant then
    grant, amount = affordable, math.ceil((prompt_units + affordable * unit_price) / scale)
  end
end

redis.call('HSET', user, RESERVED, reserved + amount, OPEN, open + 1, ESTIMATED, estimated + estimate,
  RESERVATION .. id, table.concat(
    {int(amount), int(now), int(estimate), prompt_bound, int(grant * choices), total, details}, '|'))
redis.call('EXPIRE', user, IDLE)
redis.call('EXPIRE', identity, IDLE)
redis.call('ZADD', leases, now + lease, id .. ' ' .. user_id)
if rpm > 0 then
  redis.call('ZADD', requests_window, now, id)
  redis.call('PEXPIRE', requests_window, WINDOW)
  requests, requests_reset = requests + 1, WINDOW
end
add_to_total(totals, SUM_RESERVED, total, now, amount)
tokens = tokens + estimate
return answer('ok', int(grant), int(amount), int(now), would)
