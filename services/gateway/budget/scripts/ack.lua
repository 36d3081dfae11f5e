-- Forgets rows that are in the ledger now.
-- KEYS  1 outbox, then per row: user
-- ARGV  1 epoch, then per row: id, the row's beginning ("FLAG|COST|"): a row that was lowered meanwhile must stay
for at = 1, (#ARGV - 1) / 2 do
  local id, start = ARGV[2 * at], ARGV[2 * at + 1]
  local row = redis.call('HGET', KEYS[1], id)
  if row and string.sub(row, 1, #start) == start then
    redis.call('HDEL', KEYS[1], id)
    if string.find(row, '^%d+|%d+|%d+|[^|]*|%d+|%d+|%d+|expired|') then
      -- It may have been in the ledger already, at its true cost: the user's state is built from there
      redis.call('HDEL', KEYS[at + 1], 'ep')
    end
    if redis.call('HDEL', KEYS[at + 1], 'x:' .. id) == 1 then
      redis.call('HINCRBY', KEYS[at + 1], 'v', 1)
    end
  end
end
return 'ok'
