-- Reads a user's state in the current period. Changes nothing.
--@ flags no-writes
--@ use clock windows exception
--@ keys user identity token requests_window tokens_window
--@ args epoch issued#
-- Reply "load" | "blocked" | "revoked" | "token" | "ok TIER EXTRA DURATION PERIOD SPENT RESERVED RATES"
--       (see admit.lua)
local user_epoch, tier, excepted, duration, period, spent, reserved, estimated, used_tokens, newest = unpack(
  redis.call('HMGET', user, EPOCH, TIER, EXCEPTION, DURATION, PERIOD, SPENT, RESERVED, ESTIMATED, USED_TOKENS, NEWEST))
local identity_epoch, standing, tokens_from = unpack(redis.call('HMGET', identity, EPOCH, STANDING, TOKENS_FROM))
if user_epoch ~= epoch or identity_epoch ~= epoch then return 'load' end
if standing ~= GOOD then return standing end
if redis.call('EXISTS', token) == 1 or issued < tonumber(tokens_from or 0) then return 'token' end
local current = period_of(now, tonumber(duration))
if current ~= tonumber(period) then
  if current <= tonumber(newest) then return 'load' end
  spent, reserved = '0', '0'
end
local tokens_reset = reset_of(tokens_window)
local tokens = tokens_reset > 0 and tokens_in(tokens_window, tonumber(used_tokens)) or 0
return table.concat({'ok', tier, int(exception(excepted)), duration, int(current), spent, reserved, int(requests_in(requests_window)),
  int(reset_of(requests_window)), int(tokens + tonumber(estimated)), int(tokens_reset)}, ' ')
