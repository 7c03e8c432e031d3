-- Rewards as registered and their cached scores, for several callers in one step: no score is of another version.
-- KEYS: rewards. ARGV: prefix of score keys, then per caller: count of names, names..., digests of the items in one
-- Returns per caller and name: what is registered or false, and the scores by item, false where there is none.
local DIGEST_BYTES = 32
local found, at = {}, 2
while at <= #ARGV do
  local names = tonumber(ARGV[at])
  local digests = ARGV[at + names + 1]
  for n = at + 1, at + names do
    local registered = redis.call('HGET', KEYS[1], ARGV[n])
    local scores = {}
    if registered then
      local prefix = ARGV[1] .. ARGV[n] .. ':' .. string.match(registered, '^%d+') .. ':'
      local keys = {}
      for first = 1, #digests, DIGEST_BYTES do
        keys[#keys + 1] = prefix .. string.sub(digests, first, first + DIGEST_BYTES - 1)
      end
      scores = redis.call('MGET', unpack(keys))
    end
    found[#found + 1] = registered
    found[#found + 1] = scores
  end
  at = at + names + 2
end
return found
