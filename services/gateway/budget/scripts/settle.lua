-- Takes a reservation out and its cost in, exactly once, and puts the ledger row into the outbox.
-- KEYS  1 user  2 tokens window  3 leases  4 outbox  5 tombstone  6 totals
-- ARGV  1 epoch  2 id  3 user id  4 cost  5 tokens that TPM counts  6 "row" | "none" (never admitted as far as the
--       gateway knows: no ledger row)  7 admitted, ms  8 total ("" or "type:seconds"), where no reservation tells it
--       9 the row's end
-- Reply "FLAG SETTLED_MS" of the ledger row: flag 0 for a new row, 1 for one that lowers what the reaper charged;
--       "-" when there is nothing to write
local id, cost, write, admitted = ARGV[2], tonumber(ARGV[4]), ARGV[6] == 'row', tonumber(ARGV[7])
local tombstone = redis.call('GET', KEYS[5])
local reaped, result, amount, total = 0, '0 ' .. int(now), 0, ARGV[8]
if tombstone then
  local charged = string.match(tombstone, '^reaped (%d+)')
  if not charged then return tombstone end
  reaped, result, write = tonumber(charged), '1 ' .. int(now), cost < tonumber(charged)
end

local user = redis.call('HMGET', KEYS[1], 'ep', 'dur', 'idx', 'spent', 'res', 'open', 'tok', 'tps', 'r:' .. id, 'hi')
local changes = {}
local function change(name, value)
  changes[#changes + 1] = name
  changes[#changes + 1] = value
end

if user[9] then
  local held, at, guess
  held, at, guess, total = string.match(user[9], '^(%d+)|(%d+)|(%d+)|%d+|%d+|([^|]*)|')
  amount, admitted = tonumber(held), tonumber(at)
  redis.call('HDEL', KEYS[1], 'r:' .. id)
  redis.call('ZREM', KEYS[3], id .. ' ' .. ARGV[3])
  if user[6] then
    change('open', tonumber(user[6]) - 1)
    change('tok', tonumber(user[7]) - tonumber(guess))
  end
end
local began = math.floor(admitted / 1000)
local period = user[2] and math.floor(began / tonumber(user[2]))
if period and period == tonumber(user[3]) then
  if user[9] then
    change('res', tonumber(user[5]) - amount)
  end
  if write and (user[9] or reaped > 0) then
    change('spent', tonumber(user[4]) + cost - reaped)
  elseif write then
    -- The reservation was lost, or this was settled before and nobody remembers: the ledger knows which
    redis.call('HDEL', KEYS[1], 'ep')
  end
elseif period and write and period > tonumber(user[10]) then
  -- The clock went back since, and the reservation was lost: that period begins with a rebuild, not with nothing
  change('hi', int(period))
end

if write then
  if tonumber(ARGV[5]) > 0 then
    -- The sum is that of the window's members, which go by themselves after a minute without a request
    local tokens = redis.call('EXISTS', KEYS[2]) == 1 and tonumber(user[8]) or 0
    redis.call('ZADD', KEYS[2], now, id .. ' ' .. ARGV[5])
    redis.call('PEXPIRE', KEYS[2], WINDOW)
    change('tps', tokens + tonumber(ARGV[5]))
  end
  change('x:' .. id, int(cost) .. '|' .. int(admitted))
  redis.call('HINCRBY', KEYS[1], 'v', 1)
  redis.call('EXPIRE', KEYS[1], IDLE)
  redis.call('HSET', KEYS[4], id, table.concat({string.sub(result, 1, 1), int(cost), int(now), ARGV[3], ARGV[9]}, '|'))
else
  result = '-'
end
if #changes > 0 then
  redis.call('HSET', KEYS[1], unpack(changes))
end
redis.call('SET', KEYS[5], result, 'EX', SETTLED)

if total ~= '' then
  local seconds = tonumber(string.match(total, '%d+$'))
  local field = total .. '|' .. int(math.floor(began / seconds))
  redis.call('HINCRBY', KEYS[6], 'r|' .. field, int(0 - amount))
  if write then
    redis.call('HINCRBY', KEYS[6], 's|' .. field, int(cost - reaped))
  end
end
return result
