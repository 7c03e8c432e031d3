#!lua flags=allow-oom
-- A group is scored: keep its scores, deliver the sample, drop the images and the work entry, in one step.
-- Before it the group is scored again; after it nothing is. Returns 1, or 0 when it was finished or deleted before.
-- KEYS: group, work stream, calls, sample stream, blob, digests of the run's blobs
-- ARGV: consumer group, work entry id, scores, sample, sha256 where the sample goes to the blob, else '', group id, run
-- A Redis whose clock was set back gives an id again that it lost in a power cut: the entry may be another group's by now.
local function is_own(entry, run, group)
  local names = {}
  for i = 1, #entry, 2 do
    names[entry[i]] = entry[i + 1]
  end
  return names['run'] == run and names['group'] == group
end

local kept = redis.call('HMGET', KEYS[1], 'state', 'reserved')
local entry = redis.call('XRANGE', KEYS[2], ARGV[2], ARGV[2])[1]
if not entry or is_own(entry[2], ARGV[7], ARGV[6]) then
  redis.call('XACK', KEYS[2], ARGV[1], ARGV[2])
  redis.call('XDEL', KEYS[2], ARGV[2])
end
if kept[1] ~= 'queued' then
  return 0
end
redis.call('HSET', KEYS[1], 'state', 'scored', 'items', ARGV[3])
redis.call('HDEL', KEYS[1], 'payload', 'reserved')
redis.call('HINCRBY', KEYS[3], 'reserved', 0 - tonumber(kept[2]))
local field, value = 'sample', ARGV[4]
if ARGV[5] ~= '' then
  redis.call('SET', KEYS[5], ARGV[4])
  redis.call('SADD', KEYS[6], ARGV[5])
  field, value = 'blob', ARGV[5]
end
if redis.REDIS_VERSION_NUM >= 0x080600 then
  -- Redis 8.6 knows the group by itself: once on the stream, even if its hash should come back older than the stream.
  redis.call('XADD', KEYS[4], 'IDMP', 'lasro', ARGV[6], '*', field, value, 'group', ARGV[6])
else
  redis.call('XADD', KEYS[4], '*', field, value, 'group', ARGV[6])
end
return 1
