-- Reads the sums of all shards' totals, which one gateway collects for all.
--@ use clock
--@ keys sums
--@ args every#
--@ each args total
-- every: ms for which the sums are fresh, and after which a gateway that was to read them is not waited for
-- Reply {now, 1 for the gateway that is to read the shards now, per total "READ_AT PERIOD SPENT RESERVED" or ""}
local reply, fresh = {int(now), 0}, true
local function is_past(at)
  return not at or now - tonumber(at) >= every or tonumber(at) > now
end
for _, item in each() do
  local text = redis.call('HGET', sums, item.total)
  fresh = fresh and not is_past(text and string.match(text, '^%d+'))
  reply[#reply + 1] = text or ''
end
if not fresh and is_past(redis.call('HGET', sums, READING)) then
  redis.call('HSET', sums, READING, int(now))
  reply[2] = 1
end
return reply
