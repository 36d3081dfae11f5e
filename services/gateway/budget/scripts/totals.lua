-- What the users of a shard spent and reserved together, per service type with a total budget.
-- KEYS  1 totals
-- ARGV  1 epoch, then "type:seconds"...
-- Reply {} when the sums are not built under this epoch; else per type: period, spent, reserved
if redis.call('HGET', KEYS[1], 'ep') ~= ARGV[1] then return {} end
local reply = {}
for at = 2, #ARGV do
  local period = math.floor(second / tonumber(string.match(ARGV[at], '%d+$')))
  local field = ARGV[at] .. '|' .. int(period)
  local sums = redis.call('HMGET', KEYS[1], 's|' .. field, 'r|' .. field)
  reply[#reply + 1] = int(period)
  reply[#reply + 1] = sums[1] or '0'
  reply[#reply + 1] = sums[2] or '0'
end
return reply
