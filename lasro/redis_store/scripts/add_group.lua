-- Queue a group for scoring, once. Returns {outcome, state, spent, reserved}; outcome is 'added', 'known' (same
-- content, sent before), 'conflict' (other content under that id), 'budget', 'full', or 'behind', which has the number
-- of unread samples instead of `spent`.
-- The calls it may need are reserved here, so that an accepted group never stops half-way for want of budget.
-- KEYS: group, work stream, dead-letter stream, ids of the run's groups, calls, sample stream, runs
-- ARGV: digest, payload, run, group id, calls needed, limit on the run's calls or '',
--   limit on the groups of all runs in the queue or '', limit on the run's unread samples or '', their readers' group
local spent = tonumber(redis.call('HGET', KEYS[5], 'spent') or '0')
local reserved = tonumber(redis.call('HGET', KEYS[5], 'reserved') or '0')
local known = redis.call('HMGET', KEYS[1], 'digest', 'state')
if known[1] then
  return {known[1] == ARGV[1] and 'known' or 'conflict', known[2], spent, reserved}
end
if ARGV[6] ~= '' and spent + reserved + tonumber(ARGV[5]) > tonumber(ARGV[6]) then
  return {'budget', '', spent, reserved}
end
if ARGV[7] ~= '' and redis.call('XLEN', KEYS[2]) + redis.call('XLEN', KEYS[3]) >= tonumber(ARGV[7]) then
  return {'full', '', spent, reserved}
end
local samples = redis.call('XLEN', KEYS[6])
if ARGV[8] ~= '' and samples >= tonumber(ARGV[8]) then
  local pending = redis.pcall('XPENDING', KEYS[6], ARGV[9])  -- an error while nobody has ever read
  local unread = samples - (pending.err and 0 or pending[1])
  if unread >= tonumber(ARGV[8]) then
    return {'behind', '', unread, reserved}
  end
end
redis.call('HSET', KEYS[1], 'digest', ARGV[1], 'state', 'queued', 'payload', ARGV[2], 'reserved', ARGV[5])
redis.call('SADD', KEYS[4], ARGV[4])
redis.call('SADD', KEYS[7], ARGV[3])
redis.call('HINCRBY', KEYS[5], 'reserved', ARGV[5])
redis.call('XADD', KEYS[2], '*', 'run', ARGV[3], 'group', ARGV[4])
return {'added', 'queued', spent, reserved}
