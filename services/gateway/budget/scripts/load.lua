-- Sets a user's state as PostgreSQL has it, unless something happened since the snapshot.
-- KEYS  1 user  2 identity  3 requests window  4 tokens window, then revoked tokens
-- ARGV  1 epoch  2 version of the user  3 version of the identity  4 tier  5 duration, s  6 period  7 spent, nano
--       8 the newest period of a row in the ledger  9 "0" | "blocked" | "revoked", then per revoked token: seconds until
--       it would have expired
-- Reply "ok" | "again"
local duration, period = tonumber(ARGV[5]), tonumber(ARGV[6])
if (redis.call('HGET', KEYS[1], 'v') or '0') ~= ARGV[2] then return 'again' end
if (redis.call('HGET', KEYS[2], 'v') or '0') ~= ARGV[3] then return 'again' end
if math.floor(second / duration) ~= period then return 'again' end

local newest, reserved, open, estimated = tonumber(ARGV[8]), 0, 0, 0
local fields = redis.call('HGETALL', KEYS[1])
for at = 1, #fields, 2 do
  if string.sub(fields[at], 1, 2) == 'r:' then
    local amount, admitted, guess = string.match(fields[at + 1], '^(%d+)|(%d+)|(%d+)|')
    local admitted_in = math.floor(math.floor(tonumber(admitted) / 1000) / duration)
    open, estimated, newest = open + 1, estimated + tonumber(guess), math.max(newest, admitted_in)
    if admitted_in == period then
      reserved = reserved + tonumber(amount)
    end
  end
end
if newest > period then
  -- The clock went back: nothing in the windows is where it was
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
redis.call('HSET', KEYS[2], 'ep', ARGV[1], 'blk', ARGV[9])
redis.call('EXPIRE', KEYS[2], IDLE)
for at = 10, #ARGV do
  redis.call('SET', KEYS[at - 5], '1', 'EX', ARGV[at])
end
return 'ok'
