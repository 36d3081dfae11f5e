-- Reads the amounts that a user spent and reserved in the period of its state.
--@ flags no-writes
--@ use run_id
--@ keys user
-- Reply nil when the state was built under another epoch: only PostgreSQL knows; else {tier, seconds, period, spent,
--       reserved, now in seconds}
local epoch, tier, duration, period, spent, reserved = unpack(
  redis.call('HMGET', user, EPOCH, TIER, DURATION, PERIOD, SPENT, RESERVED))
if not epoch or epoch ~= run_id() then return false end
return {tier, duration, period, spent, reserved, redis.call('TIME')[1]}
