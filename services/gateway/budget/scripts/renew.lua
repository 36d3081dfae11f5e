-- Prolongs the leases of open requests, and registers again what an emptied Redis forgot.
-- KEYS  1 leases  2 totals, then per request: user, identity, revoked token, tombstone
-- ARGV  1 epoch  2 lease, ms, then per request: id, user id, packed reservation
-- Reply per request "ok" | "reaped" | "settled" | "blocked" | "revoked" | "token"
local replies = {}
for at = 1, (#ARGV - 2) / 3 do
  local id, sub, packed = ARGV[3 * at], ARGV[3 * at + 1], ARGV[3 * at + 2]
  local user, identity, token, tombstone = KEYS[4 * at - 1], KEYS[4 * at], KEYS[4 * at + 1], KEYS[4 * at + 2]
  local over = redis.call('GET', tombstone)
  if over then
    replies[at] = string.sub(over, 1, 6) == 'reaped' and 'reaped' or 'settled'
  else
    local amount, admitted, guess, total = string.match(packed, '^(%d+)|(%d+)|(%d+)|%d+|%d+|([^|]*)|')
    if redis.call('HSETNX', user, 'r:' .. id, packed) == 1 then
      local state = redis.call('HMGET', user, 'dur', 'idx', 'res', 'open', 'tok', 'hi')
      if state[1] then
        redis.call('HSET', user, 'open', tonumber(state[4]) + 1, 'tok', tonumber(state[5]) + tonumber(guess))
        local period = math.floor(math.floor(tonumber(admitted) / 1000) / tonumber(state[1]))
        if period == tonumber(state[2]) then
          redis.call('HSET', user, 'res', tonumber(state[3]) + tonumber(amount))
        elseif period > tonumber(state[6]) then
          -- The clock went back since: that period begins with a rebuild, not with nothing
          redis.call('HSET', user, 'hi', period)
        end
      end
      if total ~= '' then
        local seconds = tonumber(string.match(total, '%d+$'))
        redis.call('HINCRBY', KEYS[2],
          'r|' .. total .. '|' .. int(math.floor(math.floor(tonumber(admitted) / 1000) / seconds)), amount)
      end
    end
    redis.call('EXPIRE', user, IDLE)
    redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), id .. ' ' .. sub)
    local block = redis.call('HGET', identity, 'blk')
    if block and block ~= '0' then
      replies[at] = block
    elseif redis.call('EXISTS', token) == 1 then
      replies[at] = 'token'
    else
      replies[at] = 'ok'
    end
  end
end
return replies
