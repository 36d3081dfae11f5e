-- Looks for what dead gateways left in a shard. One gateway per interval does it.
-- KEYS  1 leases  2 outbox  3 claim
-- ARGV  1 epoch  2 who asks  3 claim, ms  4 age of an orphan, ms  5 cursor in the outbox
-- Reply {} for a shard that another one claimed; else {cursor, age of the oldest row, ms, expired lease..., id, row...}
if not redis.call('SET', KEYS[3], ARGV[2], 'NX', 'PX', ARGV[3]) then return {} end
local expired = redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE', 'LIMIT', 0, 200)
local page = redis.call('HSCAN', KEYS[2], ARGV[5], 'COUNT', 500)
local oldest, rows = now, {}
for at = 1, #page[2], 2 do
  local settled = tonumber(string.match(page[2][at + 1], '^%d|%d+|(%d+)|'))
  oldest = math.min(oldest, settled)
  if now - settled > tonumber(ARGV[4]) then
    rows[#rows + 1] = page[2][at]
    rows[#rows + 1] = page[2][at + 1]
  end
end
return {page[1], int(now - oldest), expired, rows}
