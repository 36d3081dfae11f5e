-- Sets what is decided about an identity. One without state in Redis gets only that, which expires when unused.
--@ flags allow-oom
--@ keys identity
--@ args standing tokens_from generation version
-- version: the version that must not have changed; empty for any
-- Reply 1 | 0 (another decision came in between)
if version ~= '' and (redis.call('HGET', identity, VERSION) or '0') ~= version then return 0 end
redis.call('HINCRBY', identity, VERSION, 1)
redis.call('HSET', identity, STANDING, standing, TOKENS_FROM, tokens_from, GENERATION, generation)
if redis.call('TTL', identity) < 0 then redis.call('EXPIRE', identity, IDLE) end
return 1
