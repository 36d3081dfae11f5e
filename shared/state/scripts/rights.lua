-- Says which of some commands the user may not run on which keys. Runs none of them.
--@ flags no-writes
--@ keys user
--@ each args command key
-- user: where a cluster runs it
-- Reply: "COMMAND KEY"s
local missing = {}
for _, item in each() do
  local key = item.key == '' and user or item.key
  if not redis.acl_check_cmd(item.command, key) then missing[#missing + 1] = item.command .. ' ' .. key end
end
return missing
