-- Ends what totals_begin.lua began.
-- KEYS  1 totals
-- ARGV  1 epoch  2 who builds, then field, amount...
-- Reply "ok" | "again"
local building = redis.call('HGET', KEYS[1], 'building')
if not building or string.match(building, ' (.*)$') ~= ARGV[2] then return 'again' end
redis.call('HDEL', KEYS[1], 'building')
redis.call('HSET', KEYS[1], 'ep', ARGV[1])
for at = 3, #ARGV, 2 do
  redis.call('HINCRBY', KEYS[1], ARGV[at], ARGV[at + 1])
end
return 'ok'
