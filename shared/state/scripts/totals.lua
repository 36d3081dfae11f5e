-- Reads the sums that the users of a shard spent and reserved, per service type with a total budget.
--@ flags no-writes
--@ use clock run_id
--@ keys totals
--@ args epoch
--@ each args total since#
-- epoch: empty from callers that don't know it; total: "type:seconds"
-- Reply {now, then per type: period, spent, reserved}; the period is -1 where the sums were not built under this epoch
--       since that time, in ms
if epoch == '' then
  epoch = run_id()
end
local lasts = redis.call('HGET', totals, EPOCH) == epoch
local reply = {int(now)}
for _, item in each() do
  local period = int(period_of(now, tonumber(string.match(item.total, '%d+$'))))
  local field = item.total .. '|' .. period
  local built, spent, reserved = unpack(
    redis.call('HMGET', totals, BUILT .. item.total, SUM_SPENT .. field, SUM_RESERVED .. field))
  reply[#reply + 1] = lasts and tonumber(built or -1) >= item.since and period or '-1'
  reply[#reply + 1] = spent or '0'
  reply[#reply + 1] = reserved or '0'
end
return reply
