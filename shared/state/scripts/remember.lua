-- Stores PostgreSQL's answer about an identity, unless its standing has changed since.
--@ use run_id
--@ keys identity forgotten
--@ args version standing tokens_from generation known_user
-- version: from known.lua; known_user: the field of the service type that has a user row, or empty
-- Reply 1 | 0
local run = run_id()
local found = redis.call('HGET', identity, VERSION) or ''
if run .. ':' .. found .. '/' .. (redis.call('GET', forgotten) or '') ~= version then return 0 end
redis.call('HSET', identity, STANDING, standing, TOKENS_FROM, tokens_from, GENERATION, generation)
if known_user ~= '' then redis.call('HSET', identity, known_user, run) end
redis.call('EXPIRE', identity, IDLE)
return 1
