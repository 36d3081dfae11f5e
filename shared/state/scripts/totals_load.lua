-- Ends the build that totals_begin.lua began.
--@ keys totals
--@ args epoch build
--@ each args field amount
-- Reply "ok" | "again"
if redis.call('HGET', totals, BUILDING) ~= build then return 'again' end
redis.call('HDEL', totals, BUILDING)
redis.call('HSET', totals, EPOCH, epoch)
for _, item in each() do
  redis.call('HINCRBY', totals, item.field, item.amount)
end
return 'ok'
