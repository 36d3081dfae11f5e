-- Reads a user's last minute without changing it. The windows may still have older entries.

-- Milliseconds until no entry counts any more.
local function reset_of(window)
  local last = redis.call('ZRANGE', window, -1, -1, 'WITHSCORES')[2]
  return last and math.max(0, tonumber(last) + WINDOW - now) or 0
end

local function requests_in(window)
  return redis.call('ZCOUNT', window, now - WINDOW + 1, '+inf')
end

local function tokens_of(member)
  return tonumber(string.match(member, '%d+$'))
end

-- The tokens that count, and the number of expired entries. `sum`: all tokens of the window at its last update.
local function tokens_in(window, sum)
  local past = redis.call('ZRANGE', window, '-inf', now - WINDOW, 'BYSCORE')
  for _, member in ipairs(past) do
    sum = sum - tokens_of(member)
  end
  return sum, #past
end

