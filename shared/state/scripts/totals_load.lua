-- Ends the build that totals_begin.lua began, unless another one has begun since.
--@ keys totals
--@ args epoch build
--@ each args field amount
if redis.call('HGET', totals, BUILDING) ~= build then return end
redis.call('HDEL', totals, BUILDING)
redis.call('HSET', totals, EPOCH, epoch)
for _, item in each() do
  redis.call('HINCRBY', totals, item.field, item.amount)
end
