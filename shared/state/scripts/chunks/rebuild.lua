-- Reads the parts of a state to be rebuilt that only Redis has: open reservations, and the tokens of the window.
local function open_requests(user, duration, period)
  local reserved, open, estimated, newest = 0, 0, 0, 0
  local fields = redis.call('HGETALL', user)
  for at = 1, #fields, 2 do
    if string.sub(fields[at], 1, #RESERVATION) == RESERVATION then
      local amount, admitted, guess = reservation(fields[at + 1])
      local admitted_in = period_of(admitted, duration)
      open, estimated, newest = open + 1, estimated + guess, math.max(newest, admitted_in)
      if admitted_in == period then
        reserved = reserved + amount
      end
    end
  end
  return reserved, open, estimated, newest
end

local function sum_of(window)
  local tokens = 0
  for _, member in ipairs(redis.call('ZRANGE', window, 0, -1)) do
    tokens = tokens + tokens_of(member)
  end
  return tokens
end

