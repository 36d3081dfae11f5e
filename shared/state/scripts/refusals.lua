-- Forecasts the reasons that would refuse a user's request now: decides as admit.lua does, and changes nothing.
--@ flags no-writes
--@ use clock reservation windows rebuild run_id exception
--@ keys user identity requests_window tokens_window
--@ args tier *limits enforced least# empty# room#?
--@ args recorded_standing recorded_spent# recorded_exception
--@ each keys token
-- tier, limits: the row of the tier that the caller expects the user to have
-- least, empty: the amount to reserve with and without a prompt; room: the rest of the total budget, empty for all
-- enforced: "0" if budget and rates refuse nobody
-- recorded_standing, recorded_spent, recorded_exception: from PostgreSQL, for a user without state in Redis
-- tokens: the user's revoked tokens
-- Reply {"tier", NAME} | {{REASON, RETRY_MS, ...}, requests and tokens of the last minute, open requests}
local epoch = run_id()
local user_epoch, user_tier, excepted, user_duration, period, spent, reserved, open, estimated, used_tokens, newest =
  unpack(redis.call('HMGET', user, EPOCH, TIER, EXCEPTION, DURATION, PERIOD, SPENT, RESERVED, OPEN, ESTIMATED,
    USED_TOKENS, NEWEST))
local identity_epoch, standing = unpack(redis.call('HMGET', identity, EPOCH, STANDING))
local current = period_of(now, duration)
local lasts = user_epoch == epoch and identity_epoch == epoch
if lasts and user_tier ~= tier then return {'tier', user_tier} end
lasts = lasts and tonumber(user_duration) == duration
if lasts and current ~= tonumber(period) then
  lasts, spent, reserved = current > tonumber(newest), 0, 0
end
if lasts then
  spent, reserved, open, estimated = tonumber(spent), tonumber(reserved), tonumber(open), tonumber(estimated)
else
  standing, spent, excepted = recorded_standing, recorded_spent, recorded_exception
  reserved, open, estimated = open_requests(user, duration, current)
  used_tokens = sum_of(tokens_window)
end
period = current

local requests = requests_in(requests_window)
local tokens = reset_of(tokens_window) > 0 and tokens_in(tokens_window, tonumber(used_tokens)) or 0
tokens = tokens + estimated
local revoked = false
for _, item in each() do
  revoked = revoked or redis.call('EXISTS', item.token) == 1
end
local extra, without_rates = exception(excepted)
budget = budget + extra
local available = math.min(budget - spent - reserved, room or math.huge)
without_rates = without_rates or enforced == '0'
local found, skipped = {}, {exceeded = enforced == '0'}
repeat
--@ include decide
  if reason then
    found[#found + 1] = reason
    found[#found + 1] = int(wait)
    skipped[reason] = true
  end
until not reason
return {found, requests, int(tokens), open}
