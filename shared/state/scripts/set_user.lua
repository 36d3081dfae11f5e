-- Gives a user the money and rates of a service type, and its exception. A user without state in Redis gets only a version.
--@ flags allow-oom
--@ keys user
--@ args tier exception
-- exception: as packed.Excepted, or empty
redis.call('HINCRBY', user, VERSION, 1)
if redis.call('HEXISTS', user, EPOCH) == 1 then
  redis.call('HSET', user, TIER, tier)
  if exception == '' then redis.call('HDEL', user, EXCEPTION) else redis.call('HSET', user, EXCEPTION, exception) end
end
if redis.call('TTL', user) < 0 then redis.call('EXPIRE', user, IDLE) end
