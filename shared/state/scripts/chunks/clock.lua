-- The clock is Redis's own, in milliseconds. Numbers are doubles: whole ones are exact below 2^53, but Lua's own
-- conversion to text keeps 14 digits only, hence int().
local clock = redis.call('TIME')
local second = tonumber(clock[1])
local now = second * 1000 + math.floor(tonumber(clock[2]) / 1000)

local function int(number)
  return string.format('%.0f', number)
end

-- The number of the period of `seconds` that contains a time.
local function period_of(ms, seconds)
  return math.floor(math.floor(ms / 1000) / seconds)
end

