-- Deletes all state of an identity, unless one of its requests is open or not in the ledger yet: then it is blocked.
--@ flags allow-oom
--@ keys identity forgotten
--@ args standing
--@ each keys user requests_window tokens_window
-- standing: what ends open requests
-- Reply: the number of requests that are open or unwritten; 0 when everything was deleted
local left = 0
for _, item in each() do
  for _, name in ipairs(redis.call('HKEYS', item.user)) do
    local start = string.sub(name, 1, 2)
    if start == RESERVATION or start == UNWRITTEN then left = left + 1 end
  end
end
if left > 0 then
  redis.call('HINCRBY', identity, VERSION, 1)
  redis.call('HSET', identity, STANDING, standing)
  for _, name in ipairs(redis.call('HKEYS', identity)) do
    if string.sub(name, 1, 2) == KNOWN_USER then redis.call('HDEL', identity, name) end
  end
  redis.call('EXPIRE', identity, IDLE)
  return left
end
-- From here on, no answer of PostgreSQL from before the erasure is written
local clock = redis.call('TIME')
redis.call('SET', forgotten, clock[1] .. '.' .. clock[2], 'EX', REBUILT)
redis.call('DEL', identity)
for _, item in each() do
  redis.call('DEL', item.user, item.requests_window, item.tokens_window)
end
return 0
