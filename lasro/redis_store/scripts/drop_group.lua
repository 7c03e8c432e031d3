-- Forget a dead-lettered group, so that its id may be submitted again.
-- KEYS: dead-letter stream, group, ids of the run's groups. ARGV: entry id, group id
redis.call('XDEL', KEYS[1], ARGV[1])
if redis.call('HGET', KEYS[2], 'state') == 'dead' then
  redis.call('DEL', KEYS[2])
  redis.call('SREM', KEYS[3], ARGV[2])
end
return 1
