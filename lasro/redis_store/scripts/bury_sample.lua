-- Move a sample entry that cannot be read to the dead-letter stream, in one step; a second call does nothing.
-- KEYS: sample stream, dead-letter stream. ARGV: consumer group, entry id, reason
local found = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])
if found[1] then
  local fields = found[1][2]
  table.insert(fields, 'reason')
  table.insert(fields, ARGV[3])
  redis.call('XADD', KEYS[2], '*', 'entry', ARGV[2], unpack(fields))
  redis.call('XDEL', KEYS[1], ARGV[2])
end
return redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
