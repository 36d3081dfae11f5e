-- Reads what a rebuild needs from Redis before it asks PostgreSQL.
--@ flags no-writes
--@ use clock
--@ keys user identity forgotten
-- Reply {version of the user, version of the identity, now, id, "COST|ADMITTED_MS", ...}: the rows that may not be in
--       the ledger yet
local reply = {redis.call('HGET', user, VERSION) or '0',
  (redis.call('HGET', identity, VERSION) or '0') .. '/' .. (redis.call('GET', forgotten) or ''), int(now)}
local fields = redis.call('HGETALL', user)
for at = 1, #fields, 2 do
  if string.sub(fields[at], 1, #UNWRITTEN) == UNWRITTEN then
    reply[#reply + 1] = string.sub(fields[at], #UNWRITTEN + 1)
    reply[#reply + 1] = fields[at + 1]
  end
end
return reply
