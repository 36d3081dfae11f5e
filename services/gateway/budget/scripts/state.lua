-- What a user has in the current period. Changes nothing.
-- KEYS  1 user  2 identity  3 revoked token  4 requests window  5 tokens window
-- ARGV  1 epoch
-- Reply "load" | "blocked" | "revoked" | "token" | "ok TIER DURATION PERIOD SPENT RESERVED RATES" (see admit.lua)
local user = redis.call('HMGET', KEYS[1], 'ep', 'tier', 'dur', 'idx', 'spent', 'res', 'tok', 'hi')
local identity = redis.call('HMGET', KEYS[2], 'ep', 'blk')
if user[1] ~= ARGV[1] or identity[1] ~= ARGV[1] then return 'load' end
if identity[2] ~= '0' then return identity[2] end
if redis.call('EXISTS', KEYS[3]) == 1 then return 'token' end
local period, spent, reserved = math.floor(second / tonumber(user[3])), user[5], user[6]
if period ~= tonumber(user[4]) then
  if period <= tonumber(user[8]) then return 'load' end
  spent, reserved = '0', '0'
end
local since = now - WINDOW + 1
local requests = redis.call('ZCOUNT', KEYS[4], since, '+inf')
local tokens = tonumber(user[7])
for _, member in ipairs(redis.call('ZRANGE', KEYS[5], since, '+inf', 'BYSCORE')) do
  tokens = tokens + tonumber(string.match(member, '%d+$'))
end
local function reset(key)
  local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')[2]
  return last and int(math.max(0, tonumber(last) + WINDOW - now)) or '0'
end
return table.concat({'ok', user[2], user[3], int(period), spent, reserved,
  int(requests), reset(KEYS[4]), int(tokens), reset(KEYS[5])}, ' ')
