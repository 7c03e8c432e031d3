-- Register a reward or change it. Returns {version, 1 if it was not there before}, or {0, 0} when it was and may
-- not be replaced. Putting what is there already keeps its version, so that a repeated call changes nothing.
-- KEYS: rewards, reward versions. ARGV: name, spec as JSON, '1' to replace
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known and ARGV[3] ~= '1' then
  return {0, 0}
end
if known then
  local space = string.find(known, ' ', 1, true)
  if string.sub(known, space + 1) == ARGV[2] then
    return {tonumber(string.sub(known, 1, space - 1)), 0}
  end
end
local version = redis.call('HINCRBY', KEYS[2], ARGV[1], 1)
redis.call('HSET', KEYS[1], ARGV[1], version .. ' ' .. ARGV[2])
return {version, known and 0 or 1}
