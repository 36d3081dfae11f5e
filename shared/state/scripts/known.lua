-- Reads an identity's standing for auth.
--@ flags no-writes
--@ use run_id
--@ keys identity
--@ args known_user
-- known_user: the field of the service type
-- Reply {standing, 1 when the user row is known to exist, the version of both}
local standing, known, version = unpack(redis.call('HMGET', identity, STANDING, known_user, VERSION))
local run = run_id()
return {standing, known == run and 1 or 0, run .. ':' .. (version or '')}
