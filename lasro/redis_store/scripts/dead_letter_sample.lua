#!lua flags=allow-oom
-- Move a sample entry that cannot be used to the dead-letter stream, in one step; a second call does nothing.
-- KEYS: sample stream, dead-letter stream. ARGV: consumer group, entry id, reason
local MOST_FIELDS = 64
local found = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])
if found[1] then
  local dead = {}
  for i = 1, math.min(#found[1][2], MOST_FIELDS) do
    table.insert(dead, found[1][2][i])
  end
  -- Last, so that no field of the entry's own hides them, and `retry_sample` can leave them out.
  for _, value in ipairs({'entry', ARGV[2], 'reason', ARGV[3]}) do
    table.insert(dead, value)
  end
  redis.call('XADD', KEYS[2], '*', unpack(dead))
  redis.call('XDEL', KEYS[1], ARGV[2])
end
return redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
