-- Decides about an identity. One that no gateway has seen yet gets the decision alone, and goes again when it's idle.
--@ flags allow-oom
--@ keys identity
--@ args standing version
-- version: the one that this is bound to; empty for any
-- Reply 1 | 0 (another decision came between)
if version ~= '' and (redis.call('HGET', identity, VERSION) or '0') ~= version then return 0 end
redis.call('HINCRBY', identity, VERSION, 1)
redis.call('HSET', identity, STANDING, standing)
if redis.call('TTL', identity) < 0 then redis.call('EXPIRE', identity, IDLE) end
return 1
