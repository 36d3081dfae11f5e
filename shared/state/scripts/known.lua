-- Reads an identity's standing for auth.
--@ flags no-writes
--@ use run_id
--@ keys identity forgotten
--@ args known_user
-- known_user: the field of the service type
-- Reply {standing, 1 when the user row is known to exist, the version of both, the second from which tokens are good, the
--       highest generation}
local standing, known, version, tokens_from, generation = unpack(
  redis.call('HMGET', identity, STANDING, known_user, VERSION, TOKENS_FROM, GENERATION))
local run = run_id()
version = run .. ':' .. (version or '') .. '/' .. (redis.call('GET', forgotten) or '')
return {standing, known == run and 1 or 0, version, tokens_from or '0', generation or '0'}
