-- Charges requests whole whose gateway let their lease end.
-- KEYS  1 leases  2 outbox  3 totals, then per request: user, tombstone
-- ARGV  1 epoch, then per request: id, user id
-- Reply the outbox rows made: {id, row, ...}
local rows = {}
for at = 1, (#ARGV - 1) / 2 do
  local id, sub = ARGV[2 * at], ARGV[2 * at + 1]
  local user, tombstone = KEYS[2 + 2 * at], KEYS[3 + 2 * at]
  local member = id .. ' ' .. sub
  local ends = redis.call('ZSCORE', KEYS[1], member)
  if ends and tonumber(ends) <= now then
    redis.call('ZREM', KEYS[1], member)
    local state = redis.call('HMGET', user, 'dur', 'idx', 'spent', 'res', 'open', 'tok', 'r:' .. id)
    if state[7] then
      local amount, admitted, guess, bound, granted, total, row =
        string.match(state[7], '^(%d+)|(%d+)|(%d+)|(%d+)|(%d+)|([^|]*)|(.*)$')
      redis.call('HDEL', user, 'r:' .. id)
      if state[1] then
        redis.call('HSET', user, 'open', tonumber(state[5]) - 1, 'tok', tonumber(state[6]) - tonumber(guess))
        if math.floor(math.floor(tonumber(admitted) / 1000) / tonumber(state[1])) == tonumber(state[2]) then
          redis.call('HSET', user, 'res', tonumber(state[4]) - tonumber(amount),
            'spent', tonumber(state[3]) + tonumber(amount))
        end
      end
      redis.call('HSET', user, 'x:' .. id, amount .. '|' .. admitted)
      redis.call('HINCRBY', user, 'v', 1)
      redis.call('EXPIRE', user, IDLE)
      redis.call('SET', tombstone, 'reaped ' .. amount, 'EX', REAPED)
      if total ~= '' then
        local seconds = tonumber(string.match(total, '%d+$'))
        local field = total .. '|' .. int(math.floor(math.floor(tonumber(admitted) / 1000) / seconds))
        redis.call('HINCRBY', KEYS[3], 'r|' .. field, int(0 - tonumber(amount)))
        redis.call('HINCRBY', KEYS[3], 's|' .. field, amount)
      end
      local entry = table.concat({'0', amount, int(now), sub, admitted, bound, granted, 'expired', row}, '|')
      redis.call('HSET', KEYS[2], id, entry)
      rows[#rows + 1] = id
      rows[#rows + 1] = entry
    end
  end
end
return rows
