-- Charges the whole reservation of requests whose lease has ended.
--@ flags allow-oom
--@ use clock reservation totals
--@ keys leases outbox totals
--@ each keys user tombstone
--@ each args id user_id
-- Reply the new rows of the outbox: {id, row, ...}
local rows = {}
for _, item in each() do
  local id, user, member = item.id, item.user, item.id .. ' ' .. item.user_id
  local ends = redis.call('ZSCORE', leases, member)
  if ends and tonumber(ends) <= now then
    redis.call('ZREM', leases, member)
    local duration, period, spent, reserved, open, estimated, held = unpack(
      redis.call('HMGET', user, DURATION, PERIOD, SPENT, RESERVED, OPEN, ESTIMATED, RESERVATION .. id))
    if held then
      local amount, admitted, guess, bound, granted, total, details = reservation(held)
      redis.call('HDEL', user, RESERVATION .. id)
      if duration then
        redis.call('HSET', user, OPEN, tonumber(open) - 1, ESTIMATED, tonumber(estimated) - guess)
        if period_of(admitted, tonumber(duration)) == tonumber(period) then
          redis.call('HSET', user, RESERVED, tonumber(reserved) - amount, SPENT, tonumber(spent) + amount)
        end
      end
      redis.call('HSET', user, UNWRITTEN .. id, int(amount) .. '|' .. int(admitted))
      redis.call('HINCRBY', user, VERSION, 1)
      redis.call('EXPIRE', user, IDLE)
      redis.call('SET', item.tombstone, 'reaped ' .. int(amount) .. ' ' .. int(admitted), 'EX', REAPED)
      add_to_total(totals, SUM_RESERVED, total, admitted, 0 - amount)
      add_to_total(totals, SUM_SPENT, total, admitted, amount)
      local entry = table.concat({'0', int(amount), int(now), item.user_id, int(admitted), int(bound), int(granted),
        'expired', details}, '|')
      redis.call('HSET', outbox, id, entry)
      rows[#rows + 1] = id
      rows[#rows + 1] = entry
    end
  end
end
return rows
