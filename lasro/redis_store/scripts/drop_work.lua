-- Forget a work entry whose group cannot be scored, and the group with it, so that it may be submitted again.
-- KEYS: group, work stream, ids of the run's groups, calls. ARGV: consumer group, entry id, group id
redis.call('XACK', KEYS[2], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[2], ARGV[2])
local kept = redis.call('HMGET', KEYS[1], 'state', 'reserved')
if kept[1] == 'queued' then
  redis.call('HINCRBY', KEYS[4], 'reserved', -tonumber(kept[2]))
  redis.call('DEL', KEYS[1])
  redis.call('SREM', KEYS[3], ARGV[3])
end
return 1
