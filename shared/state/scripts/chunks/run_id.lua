-- The run id of this server, which is the epoch, for callers whose connection doesn't know it.
local function run_id()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
end

