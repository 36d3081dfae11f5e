-- What a rebuild starts from.
-- KEYS  1 user  2 identity
-- ARGV  1 epoch
-- Reply {version of the user, version of the identity, now, id, "COST|ADMITTED_MS", ...}: the rows that may not be in
--       the ledger yet
local reply = {redis.call('HGET', KEYS[1], 'v') or '0', redis.call('HGET', KEYS[2], 'v') or '0', int(now)}
local fields = redis.call('HGETALL', KEYS[1])
for at = 1, #fields, 2 do
  if string.sub(fields[at], 1, 2) == 'x:' then
    reply[#reply + 1] = string.sub(fields[at], 3)
    reply[#reply + 1] = fields[at + 1]
  end
end
return reply
