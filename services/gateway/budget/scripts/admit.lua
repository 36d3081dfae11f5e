-- Decides about one request, and reserves its worst case.
-- KEYS  1 user  2 identity  3 revoked token  4 requests window  5 tokens window  6 leases  7 tombstone  8 totals
-- ARGV  1 epoch  2 tier  3 duration, s  4 budget, nano  5 rpm  6 tpm  7 max_streams  8 id  9 user id
--       10 full cost  11 least cost  12 limit  13 least grant  14 prompt units  15 units per completion token
--       16 scale  17 estimated prompt tokens  18 n  19 total ("" or "type:seconds")  20 prompt bound  21 row  22 lease, ms
--       23 what the total leaves, nano ("" for all)  24 cost of a minimal request with an empty prompt
-- Reply "load" | "tier NAME" | "settled" | "blocked|revoked|token 0 RATES"
--       | "ok GRANT AMOUNT NOW RATES" | "streams|rpm|tpm|exceeded|large|reserved RETRY_MS RATES"
--       RATES: requests used, ms to their reset, tokens used, ms to their reset
local id = ARGV[8]
local user = redis.call('HMGET', KEYS[1], 'ep', 'tier', 'dur', 'idx', 'spent', 'res', 'open', 'tok', 'tps', 'hi')
local identity = redis.call('HMGET', KEYS[2], 'ep', 'blk')
if user[1] ~= ARGV[1] or identity[1] ~= ARGV[1] then return 'load' end
if redis.call('EXISTS', KEYS[7]) == 1 then return 'settled' end
if user[2] ~= ARGV[2] then return 'tier ' .. user[2] end
if user[3] ~= ARGV[3] then return 'load' end

local duration, period, spent, reserved = tonumber(ARGV[3]), tonumber(user[4]), tonumber(user[5]), tonumber(user[6])
local current = math.floor(second / duration)
if current ~= period then
  -- A clock that went back leads to a period that may have been spent in before: the ledger knows
  if current <= tonumber(user[10]) then return 'load' end
  spent, reserved = 0, 0
  redis.call('HSET', KEYS[1], 'idx', current, 'hi', current, 'spent', 0, 'res', 0)
end

local rpm, tpm, streams = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local open, estimated, tokens = tonumber(user[7]), tonumber(user[8]), tonumber(user[9])

local requests, requests_reset = 0, 0
if rpm > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now - WINDOW)
  requests = redis.call('ZCARD', KEYS[4])
  if requests > 0 then
    requests_reset = tonumber(redis.call('ZRANGE', KEYS[4], -1, -1, 'WITHSCORES')[2]) + WINDOW - now
  end
end

local tokens_reset = 0
if tokens > 0 then
  local past = redis.call('ZRANGE', KEYS[5], '-inf', now - WINDOW, 'BYSCORE')
  if #past > 0 then
    for _, member in ipairs(past) do
      tokens = tokens - tonumber(string.match(member, '%d+$'))
    end
    redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', now - WINDOW)
  end
  local last = redis.call('ZRANGE', KEYS[5], -1, -1, 'WITHSCORES')
  if last[2] then
    tokens_reset = tonumber(last[2]) + WINDOW - now
  else
    tokens = 0
  end
  redis.call('HSET', KEYS[1], 'tps', tokens)
end

local function answer(...)
  return table.concat({...}, ' ') .. ' ' .. table.concat(
    {int(requests), int(requests_reset), int(tokens + estimated), int(tokens_reset)}, ' ')
end

if identity[2] ~= '0' then return answer(identity[2], 0) end
if redis.call('EXISTS', KEYS[3]) == 1 then return answer('token', 0) end
if streams > 0 and open >= streams then
  return answer('streams', 1000)
end
if rpm > 0 and requests >= rpm then
  local leaves = redis.call('ZRANGE', KEYS[4], requests - rpm, requests - rpm, 'WITHSCORES')[2]
  return answer('rpm', int(tonumber(leaves) + WINDOW - now))
end
if tpm > 0 and tokens + estimated >= tpm then
  -- When enough has left the window; if what is open stands in the way, nobody knows
  local left, wait = tokens + estimated, 1000
  local window = redis.call('ZRANGE', KEYS[5], 0, -1, 'WITHSCORES')
  for at = 1, #window, 2 do
    left = left - tonumber(string.match(window[at], '%d+$'))
    if left < tpm then
      wait = tonumber(window[at + 1]) + WINDOW - now
      break
    end
  end
  return answer('tpm', int(wait))
end

local budget, full, least, limit = tonumber(ARGV[4]), tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])
local available = math.min(budget - spent - reserved, tonumber(ARGV[23]) or math.huge)
local grant, amount
if full <= available then
  grant, amount = limit, full
elseif least <= available then
  local prompt, each, scale = tonumber(ARGV[14]), tonumber(ARGV[15]), tonumber(ARGV[16])
  grant = math.floor((available * scale - prompt) / each)
  if grant > tonumber(ARGV[13]) then
    amount = math.ceil((prompt + grant * each) / scale)
  else
    grant, amount = tonumber(ARGV[13]), least
  end
elseif budget - spent < tonumber(ARGV[24]) then
  return answer('exceeded', int((current + 1) * duration * 1000 - now))
elseif budget - spent < least then
  return answer('large', 0)
else
  return answer('reserved', 1000)
end

local guess = tonumber(ARGV[17])
redis.call('HSET', KEYS[1], 'res', reserved + amount, 'open', open + 1, 'tok', estimated + guess, 'r:' .. id,
  table.concat({int(amount), int(now), ARGV[17], ARGV[20], int(grant * tonumber(ARGV[18])), ARGV[19], ARGV[21]}, '|'))
redis.call('EXPIRE', KEYS[1], IDLE)
redis.call('ZADD', KEYS[6], now + tonumber(ARGV[22]), id .. ' ' .. ARGV[9])
if rpm > 0 then
  redis.call('ZADD', KEYS[4], now, id)
  redis.call('PEXPIRE', KEYS[4], WINDOW)
  requests, requests_reset = requests + 1, WINDOW
end
if ARGV[19] ~= '' then
  local seconds = tonumber(string.match(ARGV[19], '%d+$'))
  redis.call('HINCRBY', KEYS[8], 'r|' .. ARGV[19] .. '|' .. int(math.floor(second / seconds)), int(amount))
end
estimated = estimated + guess
return answer('ok', int(grant), int(amount), int(now))
