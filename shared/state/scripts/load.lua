-- Builds a user's state from PostgreSQL's answers, unless it has changed since the snapshot.
--@ use clock reservation windows rebuild
--@ keys user identity forgotten requests_window tokens_window
--@ args epoch user_version identity_version tier exception duration# period# spent newest# standing tokens_from
--@ each keys token
--@ each args seconds
-- exception: as packed.Excepted, or empty; newest: period of a row in the ledger; per revoked token the seconds until
-- it would have expired
-- Reply "ok" | "again"
if (redis.call('HGET', user, VERSION) or '0') ~= user_version then return 'again' end
if (redis.call('HGET', identity, VERSION) or '0') .. '/' .. (redis.call('GET', forgotten) or '') ~= identity_version then
  return 'again'
end
if period_of(now, duration) ~= period then return 'again' end

local reserved, open, estimated, newest_open = open_requests(user, duration, period)
newest = math.max(newest, newest_open)
if newest > period then
  -- The clock went back, so the times in the windows are wrong
  redis.call('DEL', requests_window, tokens_window)
end

-- A first version that differs from all earlier ones, in case this key was lost and is created again
redis.call('HSETNX', user, VERSION, int(now))
redis.call('HSET', user, EPOCH, epoch, TIER, tier, DURATION, int(duration), PERIOD, period, NEWEST, newest,
  SPENT, spent, RESERVED, int(reserved), OPEN, open, ESTIMATED, int(estimated), USED_TOKENS, int(sum_of(tokens_window)))
if exception == '' then redis.call('HDEL', user, EXCEPTION) else redis.call('HSET', user, EXCEPTION, exception) end
redis.call('EXPIRE', user, IDLE)
redis.call('HSET', identity, EPOCH, epoch, STANDING, standing, TOKENS_FROM, tokens_from)
redis.call('EXPIRE', identity, IDLE)
for _, item in each() do
  redis.call('SET', item.token, '1', 'EX', item.seconds)
end
return 'ok'
