-- Renews the leases of open requests, and registers requests again that an emptied Redis has lost.
--@ flags allow-oom
--@ use clock reservation totals
--@ keys leases totals
--@ args lease#
--@ each keys user identity token tombstone
--@ each args id user_id issued# reserved
-- reserved: empty for a request that is over as far as its gateway knows, of which only its user is asked
-- Reply per request: "reaped" | "settled" for one that is over unknown to its gateway; else "blocked" | "revoked" |
--       "token" | "ok": the first that is so
local replies = {}
for at, item in each() do
  local user = item.user
  local over = redis.call('GET', item.tombstone)
  if not over and item.reserved ~= '' then
    if redis.call('HSETNX', user, RESERVATION .. item.id, item.reserved) == 1 then
      local amount, admitted, guess, _, _, total = reservation(item.reserved)
      local duration, period, reserved, open, estimated, newest = unpack(
        redis.call('HMGET', user, DURATION, PERIOD, RESERVED, OPEN, ESTIMATED, NEWEST))
      if duration then
        redis.call('HSET', user, OPEN, tonumber(open) + 1, ESTIMATED, tonumber(estimated) + guess)
        local admitted_in = period_of(admitted, tonumber(duration))
        if admitted_in == tonumber(period) then
          redis.call('HSET', user, RESERVED, tonumber(reserved) + amount)
        elseif admitted_in > tonumber(newest) then
          -- The clock went back since the admission: the sums of that period come from a rebuild, not from zero
          redis.call('HSET', user, NEWEST, admitted_in)
        end
      end
      add_to_total(totals, SUM_RESERVED, total, admitted, amount)
    end
    redis.call('EXPIRE', user, IDLE)
    redis.call('ZADD', leases, now + lease, item.id .. ' ' .. item.user_id)
  end
  local standing, tokens_from = unpack(redis.call('HMGET', item.identity, STANDING, TOKENS_FROM))
  if over and item.reserved ~= '' then
    replies[at] = string.sub(over, 1, 6) == 'reaped' and 'reaped' or 'settled'
  elseif standing and standing ~= GOOD then
    replies[at] = standing
  elseif redis.call('EXISTS', item.token) == 1 or item.issued < tonumber(tokens_from or 0) then
    replies[at] = 'token'
  else
    replies[at] = 'ok'
  end
end
return replies
