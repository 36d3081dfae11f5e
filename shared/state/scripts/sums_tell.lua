-- Tells all gateways what the totals of the shards add up to.
--@ keys sums
--@ args read_at
--@ each args total period spent reserved
for _, item in each() do
  redis.call('HSET', sums, item.total, table.concat({read_at, item.period, item.spent, item.reserved}, ' '))
end
