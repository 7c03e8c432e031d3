-- Put a dead-lettered group back into the queue; its calls are no longer reserved and must fit the limit again.
-- Returns 1, or 0 where it is not dead any more.
-- KEYS: dead-letter stream, work stream, group. ARGV: entry id, run, group id
redis.call('XDEL', KEYS[1], ARGV[1])
if redis.call('HGET', KEYS[3], 'state') ~= 'dead' then
  return 0
end
redis.call('HSET', KEYS[3], 'state', 'queued')
redis.call('HDEL', KEYS[3], 'reason')
redis.call('XADD', KEYS[2], '*', 'run', ARGV[2], 'group', ARGV[3])
return 1
