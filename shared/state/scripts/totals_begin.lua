-- Begins to build sums of a shard: from now on every change adds to empty sums; the earlier amounts are in the reply,
-- and totals_load.lua adds them. The users' keys, made here from the leases, are in this shard's slot.
--@ use clock reservation
--@ keys totals leases outbox
--@ args epoch build users most#
--@ each args total
-- build: a new name of this build; users: the beginning of the users' keys; most: the build does not begin with more
-- rows than this in the outbox
-- Reply {} while the outbox has too many rows; else {now, {"type:seconds", admitted ms, amount...}, {id, outbox entry...}}
if redis.call('HLEN', outbox) > most then return {} end
local wanted, of_type = {}, {}
for _, item in each() do
  wanted[item.total] = true
  of_type[string.match(item.total, '^(.+):')] = item.total
end
if redis.call('HGET', totals, EPOCH) ~= epoch then
  redis.call('DEL', totals)
end
for _, field in ipairs(redis.call('HKEYS', totals)) do
  -- BUILT has the total alone, the sums have its periods too
  local total = string.match(field, '^%a|([^|]+)')
  if total and wanted[total] then
    redis.call('HDEL', totals, field)
  end
end
redis.call('HSET', totals, BUILDING, build)
local open = {}
for _, member in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
  local id, user = string.match(member, '^(%S+) (.+)$')
  local held = redis.call('HGET', users .. user, RESERVATION .. id)
  if held then
    local amount, admitted, _, _, _, total, details = reservation(held)
    if total == '' and of_type[cjson.decode(details)[2]] then
      -- Its service type had no total budget when it was admitted: from now on it counts
      total = of_type[cjson.decode(details)[2]]
      redis.call('HSET', users .. user, RESERVATION .. id, (string.gsub(held, '||', '|' .. total .. '|', 1)))
    end
    if wanted[total] then
      open[#open + 1] = total
      open[#open + 1] = int(admitted)
      open[#open + 1] = int(amount)
    end
  end
end
return {int(now), open, redis.call('HGETALL', outbox)}
