-- What every script starts with. The clock is Redis's own, in milliseconds. Numbers are doubles: whole ones are
-- exact below 2^53, but Lua's own conversion to text keeps 14 digits only, hence int().
local clock = redis.call('TIME')
local second = tonumber(clock[1])
local now = second * 1000 + math.floor(tonumber(clock[2]) / 1000)

local function int(number)
  return string.format('%.0f', number)
end

local WINDOW = 60000      -- of RPM and TPM, milliseconds
local IDLE = 172800       -- seconds that an unused user's state is kept; it's rebuilt from the ledger
local SETTLED = 600       -- seconds that a settled request is remembered
local REAPED = 86400      -- seconds that a late settlement may still lower what the reaper charged

