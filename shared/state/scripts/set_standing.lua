-- Sets an identity's standing. An identity without state in Redis gets only the standing, which expires when unused.
--@ flags allow-oom
--@ keys identity
--@ args standing version
-- version: the version that must not have changed; empty for any
-- Reply 1 | 0 (another decision came in between)
if version ~= '' and (redis.call('HGET', identity, VERSION) or '0') ~= version then return 0 end
redis.call('HINCRBY', identity, VERSION, 1)
redis.call('HSET', identity, STANDING, standing)
if redis.call('TTL', identity) < 0 then redis.call('EXPIRE', identity, IDLE) end
return 1
