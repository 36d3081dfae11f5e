-- Finds expired leases and old rows of a shard that dead gateways left, and forgets old sums. One gateway per interval
-- claims the shard.
--@ flags allow-oom
--@ use clock
--@ keys leases outbox claim totals
--@ args gateway interval orphan# cursor
-- interval: ms for which the shard is claimed; orphan: ms after which a row counts as left; cursor: in the outbox
-- Reply {} when another gateway has the claim; else {cursor, rows in the outbox, age of the
--       oldest, ms, {expired lease...}, {id, row...}}
if not redis.call('SET', claim, gateway, 'NX', 'PX', interval) then return {} end
local expired = redis.call('ZRANGE', leases, '-inf', now, 'BYSCORE', 'LIMIT', 0, 200)
local page = redis.call('HSCAN', outbox, cursor, 'COUNT', 500)
local oldest, rows = now, {}
for at = 1, #page[2], 2 do
  local settled = tonumber(string.match(page[2][at + 1], '^%d|%d+|(%d+)|'))
  oldest = math.min(oldest, settled)
  if now - settled > orphan then
    rows[#rows + 1] = page[2][at]
    rows[#rows + 1] = page[2][at + 1]
  end
end
for _, field in ipairs(redis.call('HKEYS', totals)) do
  -- While a reaped request may still be settled, its period's sums are kept; the clock may go back, too
  local seconds, period = string.match(field, ':(%d+)|(%d+)$')
  if seconds and (period + 1) * seconds + REAPED < second then redis.call('HDEL', totals, field) end
end
return {page[1], redis.call('HLEN', outbox), int(now - oldest), expired, rows}
