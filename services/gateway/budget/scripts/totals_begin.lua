-- Begins to build the sums of a shard: from here on every change adds to empty sums, and what was there before is
-- told, to be added by totals_load.lua. The users' keys are made here from the leases; they're on this shard's slot.
-- KEYS  1 totals  2 leases  3 outbox
-- ARGV  1 epoch  2 who builds  3 prefix of users' keys
-- Reply {} when somebody else is at it; else {now, {"type:seconds", admitted ms, amount...}, {id, outbox entry...}}
local building = redis.call('HGET', KEYS[1], 'building')
if building and now - tonumber(string.match(building, '^%d+')) < 2000 then return {} end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'building', int(now) .. ' ' .. ARGV[2])
local open = {}
for _, member in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  local id, user = string.match(member, '^(%S+) (.+)$')
  local held = redis.call('HGET', ARGV[3] .. user, 'r:' .. id)
  if held then
    local amount, admitted, total = string.match(held, '^(%d+)|(%d+)|%d+|%d+|%d+|([^|]*)|')
    if total ~= '' then
      open[#open + 1] = total
      open[#open + 1] = admitted
      open[#open + 1] = amount
    end
  end
end
return {int(now), open, redis.call('HGETALL', KEYS[3])}
