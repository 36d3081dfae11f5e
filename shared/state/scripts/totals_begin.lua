-- Begins to build the sums of a shard: from here on every change adds to empty sums, and what was there before is in
-- the reply, to be added by totals_load.lua. The users' keys are made here from the leases; they're on this shard's slot.
--@ use clock reservation
--@ keys totals leases outbox
--@ args builder users
-- users: what the key of a user begins with
-- Reply {} while another one builds; else {now, {"type:seconds", admitted ms, amount...}, {id, outbox entry...}}
local building = redis.call('HGET', totals, BUILDING)
if building and now - tonumber(string.match(building, '^%d+')) < BUILD then return {} end
redis.call('DEL', totals)
redis.call('HSET', totals, BUILDING, int(now) .. ' ' .. builder)
local open = {}
for _, member in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
  local id, user = string.match(member, '^(%S+) (.+)$')
  local held = redis.call('HGET', users .. user, RESERVATION .. id)
  if held then
    local amount, admitted, _, _, _, total = reservation(held)
    if total ~= '' then
      open[#open + 1] = total
      open[#open + 1] = int(admitted)
      open[#open + 1] = int(amount)
    end
  end
end
return {int(now), open, redis.call('HGETALL', outbox)}
