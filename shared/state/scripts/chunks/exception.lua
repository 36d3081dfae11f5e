-- Reads a user's exception (packed.Excepted) at this moment: nano-dollars beside the budget, and whether rates are
-- lifted.
local function exception(text)
  local ends, extra, rates = string.match(text or '', '^(%d+)|(%d+)|([01])$')
  if not ends or now >= tonumber(ends) then return 0, false end
  return tonumber(extra), rates == '0'
end

