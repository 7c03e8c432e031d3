-- Rewards as registered and their cached scores, for several callers in one step: no score is of another version.
-- KEYS: rewards. ARGV: prefix of score keys, then per caller: count of names, names..., count of items, digests...
-- Returns per caller and name: what is registered or false, and the scores by item, false where there is none.
local found, at = {}, 2
while at <= #ARGV do
  local names = tonumber(ARGV[at])
  local items = tonumber(ARGV[at + names + 1])
  local first = at + names + 2
  for n = at + 1, at + names do
    local registered = redis.call('HGET', KEYS[1], ARGV[n])
    local scores = {}
    if registered then
      local prefix = ARGV[1] .. ARGV[n] .. ':' .. string.match(registered, '^%d+') .. ':'
      local keys = {}
      for i = 0, items - 1 do
        keys[i + 1] = prefix .. ARGV[first + i]
      end
      scores = redis.call('MGET', unpack(keys))
    end
    found[#found + 1] = registered
    found[#found + 1] = scores
  end
  at = first + items
end
return found
