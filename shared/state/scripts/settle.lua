-- Replaces a reservation with its cost, exactly once, and puts the ledger row into the outbox.
--@ flags allow-oom
--@ use clock reservation totals
--@ keys user tokens_window leases outbox tombstone totals
--@ args id user_id cost# rate_tokens# write admitted# total row_end
-- write: "row" | "none" (never admitted as far as the gateway knows: no ledger row)
-- total: used when the reservation is lost
-- Reply "0 SETTLED_MS" of a new ledger row, "1 SETTLED_MS ADMITTED_MS" of one that lowers what the reaper charged, "-"
--       when there is nothing to write
local over = redis.call('GET', tombstone)
local reaped, result, amount, write = 0, '0 ' .. int(now), 0, write == 'row'
if over then
  local charged, at = string.match(over, '^reaped (%d+) ?(%d*)')
  if not charged then return over end
  if at ~= '' then
    -- A gateway that does not know whether it admitted the request gives another time; the ledger's key has this one
    admitted, row_end = tonumber(at), string.gsub(row_end, '^%d+', at)
  end
  reaped, write = tonumber(charged), cost < tonumber(charged)
  result = '1 ' .. int(now) .. ' ' .. int(admitted)
end

local duration, period, newest, spent, reserved, open, estimated, used_tokens, held = unpack(redis.call(
  'HMGET', user, DURATION, PERIOD, NEWEST, SPENT, RESERVED, OPEN, ESTIMATED, USED_TOKENS, RESERVATION .. id))
local changes = {}
local function change(name, value)
  changes[#changes + 1] = name
  changes[#changes + 1] = value
end

if held then
  local guess, _
  amount, admitted, guess, _, _, total = reservation(held)
  redis.call('HDEL', user, RESERVATION .. id)
  redis.call('ZREM', leases, id .. ' ' .. user_id)
  if open then
    change(OPEN, tonumber(open) - 1)
    change(ESTIMATED, tonumber(estimated) - guess)
  end
end
local admitted_in = duration and period_of(admitted, tonumber(duration))
if admitted_in and admitted_in == tonumber(period) then
  if held then
    change(RESERVED, tonumber(reserved) - amount)
  end
  if write and (held or reaped > 0) then
    change(SPENT, tonumber(spent) + cost - reaped)
  elseif write then
    -- The reservation was lost, or the request was settled long ago and its tombstone is gone: the ledger knows
    redis.call('HDEL', user, EPOCH)
  end
elseif admitted_in and write and admitted_in > tonumber(newest) then
  -- The clock went back and the reservation was lost: the sums of that period come from a rebuild, not from zero
  change(NEWEST, int(admitted_in))
end

if write then
  if rate_tokens > 0 then
    -- The sum covers the window's members, which expire after a minute without a request
    local tokens = redis.call('EXISTS', tokens_window) == 1 and tonumber(used_tokens) or 0
    redis.call('ZADD', tokens_window, now, id .. ' ' .. int(rate_tokens))
    redis.call('PEXPIRE', tokens_window, WINDOW)
    change(USED_TOKENS, tokens + rate_tokens)
  end
  change(UNWRITTEN .. id, int(cost) .. '|' .. int(admitted))
  redis.call('HINCRBY', user, VERSION, 1)
  redis.call('EXPIRE', user, IDLE)
  redis.call('HSET', outbox, id, table.concat({string.sub(result, 1, 1), int(cost), int(now), user_id, row_end}, '|'))
else
  result = '-'
end
if #changes > 0 then
  redis.call('HSET', user, unpack(changes))
end
redis.call('SET', tombstone, result, 'EX', SETTLED)

add_to_total(totals, SUM_RESERVED, total, admitted, 0 - amount)
if write then
  add_to_total(totals, SUM_SPENT, total, admitted, cost - reaped)
end
return result
