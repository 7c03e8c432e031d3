-- Queue a group for scoring, once. Returns {outcome, state, spent, reserved}; outcome is
-- 'added', 'known' (same content, sent before), 'conflict' (other content under that id), 'budget' or 'full'.
-- The calls it may need are reserved here, so that an accepted group never stops half-way for want of budget.
-- KEYS: group, work stream, ids of the run's groups, calls
-- ARGV: digest, payload, run, group id, calls needed, limit on the run's calls or '',
--   limit on the groups of all runs in the queue or ''
local spent = tonumber(redis.call('HGET', KEYS[4], 'spent') or '0')
local reserved = tonumber(redis.call('HGET', KEYS[4], 'reserved') or '0')
local known = redis.call('HMGET', KEYS[1], 'digest', 'state')
if known[1] then
  return {known[1] == ARGV[1] and 'known' or 'conflict', known[2], spent, reserved}
end
if ARGV[6] ~= '' and spent + reserved + tonumber(ARGV[5]) > tonumber(ARGV[6]) then
  return {'budget', '', spent, reserved}
end
if (ARGV[7] or '') ~= '' and redis.call('XLEN', KEYS[2]) >= tonumber(ARGV[7]) then
  return {'full', '', spent, reserved}
end
redis.call('HSET', KEYS[1], 'digest', ARGV[1], 'state', 'queued', 'payload', ARGV[2], 'reserved', ARGV[5])
redis.call('SADD', KEYS[3], ARGV[4])
redis.call('HINCRBY', KEYS[4], 'reserved', ARGV[5])
redis.call('XADD', KEYS[2], '*', 'run', ARGV[3], 'group', ARGV[4])
return {'added', 'queued', spent, reserved}
