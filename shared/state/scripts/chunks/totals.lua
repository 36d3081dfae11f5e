-- Adds to the sum of the period that contains a time. `total`: "type:seconds"; empty for a type without a total budget.
local function add_to_total(totals, kind, total, ms, amount)
  if total ~= '' then
    local seconds = tonumber(string.match(total, '%d+$'))
    redis.call('HINCRBY', totals, kind .. total .. '|' .. int(period_of(ms, seconds)), int(amount))
  end
end

