-- The last minute of a user, read without changing it. Entries that have left it may still stand in the windows.

-- Milliseconds until nothing counts any more.
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

-- Tokens that count, and how many entries have left. `sum`: of all that the window had when it was last looked at.
local function tokens_in(window, sum)
  local past = redis.call('ZRANGE', window, '-inf', now - WINDOW, 'BYSCORE')
  for _, member in ipairs(past) do
    sum = sum - tokens_of(member)
  end
  return sum, #past
end

