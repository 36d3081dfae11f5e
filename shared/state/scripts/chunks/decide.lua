-- What keeps a request from being admitted: {reason, ms after which it may be over, ...}; only the first one unless
-- `all`. The one place that decides, for admission and for those who ask whether there would be one.
--@ needs standing revoked open requests requests_window tokens tokens_window rpm tpm max_streams
--@ needs budget spent available least empty period duration
local function refusals(all)
  local found = {}
  local function add(reason, wait)
    found[#found + 1] = reason
    found[#found + 1] = int(wait)
    return not all
  end
  if standing ~= GOOD and add(standing, 0) then return found end
  if revoked and add('token', 0) then return found end
  if max_streams > 0 and open >= max_streams and add('streams', 1000) then return found end
  if rpm > 0 and requests >= rpm then
    local leaves = redis.call('ZRANGE', requests_window, -rpm, -rpm, 'WITHSCORES')[2]
    if add('rpm', tonumber(leaves) + WINDOW - now) then return found end
  end
  if tpm > 0 and tokens >= tpm then
    -- When enough has left the window; if what is open stands in the way, nobody knows
    local left, wait = tokens, 1000
    local window = redis.call('ZRANGE', tokens_window, now - WINDOW + 1, '+inf', 'BYSCORE', 'WITHSCORES')
    for at = 1, #window, 2 do
      left = left - tokens_of(window[at])
      if left < tpm then
        wait = tonumber(window[at + 1]) + WINDOW - now
        break
      end
    end
    if add('tpm', wait) then return found end
  end
  if least > available then
    if budget - spent < empty then
      add('exceeded', (period + 1) * duration * 1000 - now)
    elseif budget - spent < least then
      add('large', 0)
    else
      add('reserved', 1000)
    end
  end
  return found
end

