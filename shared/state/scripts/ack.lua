-- Removes rows from the outbox that are in the ledger now.
--@ flags allow-oom
--@ keys outbox
--@ each keys user
--@ each args id start
-- start: the beginning of the row, "FLAG|COST|"; a row that was lowered in the meantime must stay
for _, item in each() do
  local row = redis.call('HGET', outbox, item.id)
  if row and string.sub(row, 1, #item.start) == item.start then
    redis.call('HDEL', outbox, item.id)
    if string.find(row, '^%d+|%d+|%d+|[^|]*|%d+|%d+|%d+|expired|') then
      -- The ledger may have had the row already, with its true cost: rebuild the user's state from the ledger
      redis.call('HDEL', item.user, EPOCH)
    end
    if redis.call('HDEL', item.user, UNWRITTEN .. item.id) == 1 then
      redis.call('HINCRBY', item.user, VERSION, 1)
      if redis.call('HLEN', item.user) <= 2 and redis.call('HEXISTS', item.user, EPOCH) == 0 then
        -- The version and USED_TOKENS alone, of a user that was erased, say: they must only outlive a rebuild under way
        redis.call('EXPIRE', item.user, SETTLED)
      end
    end
  end
end
