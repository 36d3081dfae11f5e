-- Sets a user's state as PostgreSQL has it, unless something happened since the snapshot.
-- KEYS  1 user  2 identity  3 requests window  4 tokens window, then revoked tokens
-- ARGV  1 epoch  2 version of the user  3 version of the identity  4 tier  5 duration, s  6 period  7 spent, nano
--       8 "0" | "blocked" | "revoked", then per revoked token: seconds until it would have expired
-- Reply "ok" | "again"
local duration, period = tonumber(ARGV[5]), tonumber(ARGV[6])
if (redis.call('HGET', KEYS[1], 'v') or '0') ~= ARGV[2] then return 'again' end
if (redis.call('HGET', KEYS[2], 'v') or '0') ~= ARGV[3] then return 'again' end
if math.floor(second / duration) ~= period then return 'again' end

local newest, reserved, open, estimated = period, 0, 0, 0
local fields = redis.call('HGETALL', KEYS[1])
local known = {}
for at = 1, #fields, 2 do
  local name, value = fields[at], fields[at + 1]
  known[name] = value
  if string.sub(name, 1, 2) == 'r:' then
    local amount, admitted, guess = string.match(value, '^(%d+)|(%d+)|(%d+)|')
    open, estimated = open + 1, estimated + tonumber(guess)
    if math.floor(math.floor(tonumber(admitted) / 1000) / duration) == period then
      reserved = reserved + tonumber(amount)
    end
  end
end
if known.dur == ARGV[5] and tonumber(known.hi) > period then
  -- The clock went back: what was admitted in periods to come is in the ledger, and must be read again then
  newest = tonumber(known.hi)
  redis.call('DEL', KEYS[3], KEYS[4])
end
local tokens = 0
for _, member in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
  tokens = tokens + tonumber(string.match(member, '%d+$'))
end

-- A first version unlike any before, should this key have been lost and made anew
redis.call('HSETNX', KEYS[1], 'v', int(now))
redis.call('HSET', KEYS[1], 'ep', ARGV[1], 'tier', ARGV[4], 'dur', ARGV[5], 'idx', period, 'hi', newest, 'spent', ARGV[7],
  'res', int(reserved), 'open', open, 'tok', int(estimated), 'tps', int(tokens))
redis.call('EXPIRE', KEYS[1], IDLE)
redis.call('HSET', KEYS[2], 'ep', ARGV[1], 'blk', ARGV[8])
redis.call('EXPIRE', KEYS[2], IDLE)
for at = 9, #ARGV do
  redis.call('SET', KEYS[at - 4], '1', 'EX', ARGV[at])
end
return 'ok'
