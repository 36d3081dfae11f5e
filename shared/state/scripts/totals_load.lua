-- Ends the build that totals_begin.lua began.
--@ keys totals
--@ args epoch builder
--@ each args field amount
-- Reply "ok" | "again"
local building = redis.call('HGET', totals, BUILDING)
if not building or string.match(building, ' (.*)$') ~= builder then return 'again' end
redis.call('HDEL', totals, BUILDING)
redis.call('HSET', totals, EPOCH, epoch)
for _, item in each() do
  redis.call('HINCRBY', totals, item.field, item.amount)
end
return 'ok'
