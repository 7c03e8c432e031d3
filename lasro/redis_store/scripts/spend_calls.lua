#!lua flags=allow-oom
-- Count calls about to be made for a group, out of its reservation. A group scored again after a crash has none
-- left and needs room in the limit. Returns 1, or 0 when the limit forbids them or the group is not queued.
-- KEYS: group, calls. ARGV: calls, limit on the run's calls or ''
local kept = redis.call('HMGET', KEYS[1], 'state', 'reserved')
if kept[1] ~= 'queued' then
  return 0
end
local count = tonumber(ARGV[1])
local from_reserve = math.min(count, tonumber(kept[2]))
local spent = tonumber(redis.call('HGET', KEYS[2], 'spent') or '0')
local reserved = tonumber(redis.call('HGET', KEYS[2], 'reserved') or '0')
if count > from_reserve and ARGV[2] ~= '' and spent + reserved + count - from_reserve > tonumber(ARGV[2]) then
  return 0
end
redis.call('HINCRBY', KEYS[1], 'reserved', 0 - from_reserve)
redis.call('HINCRBY', KEYS[2], 'reserved', 0 - from_reserve)
redis.call('HINCRBY', KEYS[2], 'spent', count)
return 1
