-- Reads an open reservation from the user's hash (packed.Reserved): amount, admitted ms, estimated tokens, prompt bound,
-- granted tokens, total, details. The first five are numbers.
local function reservation(text)
  local amount, admitted, guess, bound, granted, total, details =
    string.match(text, '^(%d+)|(%d+)|(%d+)|(%d+)|(%d+)|([^|]*)|(.*)$')
  return tonumber(amount), tonumber(admitted), tonumber(guess), tonumber(bound), tonumber(granted), total, details
end

