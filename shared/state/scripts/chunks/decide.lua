-- The reason that refuses a request, `reason`, and the ms after which it may no longer hold, `wait`; both nil when the
-- request may be admitted. Only this chunk decides, for admissions and for forecasts; a forecast names in `skipped` the
-- reasons that it has found already. `without_rates`: neither rates nor open requests refuse. It is no
-- function: one that reads so many locals costs 5 % of an admission.
--@ needs standing revoked open requests requests_window tokens tokens_window rpm tpm max_streams
--@ needs budget spent available least empty period duration skipped without_rates
local reason, wait
if standing ~= GOOD and not skipped[standing] then
  reason, wait = standing, 0
elseif revoked and not skipped.token then
  reason, wait = 'token', 0
elseif not without_rates and max_streams > 0 and open >= max_streams and not skipped.streams then
  reason, wait = 'streams', 1000
elseif not without_rates and rpm > 0 and requests >= rpm and not skipped.rpm then
  local leaves = redis.call('ZRANGE', requests_window, -rpm, -rpm, 'WITHSCORES')[2]
  reason, wait = 'rpm', tonumber(leaves) + WINDOW - now
elseif not without_rates and tpm > 0 and tokens >= tpm and not skipped.tpm then
  -- The time at which enough has left the window; unknown if the estimates of open requests alone are too much
  reason, wait = 'tpm', 1000
  local left, window = tokens, redis.call('ZRANGE', tokens_window, now - WINDOW + 1, '+inf', 'BYSCORE', 'WITHSCORES')
  for at = 1, #window, 2 do
    left = left - tokens_of(window[at])
    if left < tpm then
      wait = tonumber(window[at + 1]) + WINDOW - now
      break
    end
  end
elseif least > available and not (skipped.exceeded or skipped.large or skipped.reserved) then
  if budget - spent < empty then
    reason, wait = 'exceeded', (period + 1) * duration * 1000 - now
  elseif budget - spent < least then
    reason, wait = 'large', 0
  else
    reason, wait = 'reserved', 1000
  end
end
