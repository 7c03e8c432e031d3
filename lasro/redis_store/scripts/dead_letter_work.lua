#!lua flags=allow-oom
-- Move a work entry to the dead-letter stream, with the reason. Its group keeps its payload, and its reserved calls are
-- free again. An entry whose group is gone or scored is only deleted; one that names no group is moved as it is.
-- A second call does nothing. Returns 1 where an entry was moved.
-- KEYS: work stream, dead-letter stream, then where the entry names a group: group, calls
-- ARGV: consumer group, entry id, reason, deliveries, run, group id
local MOST_FIELDS = 64
-- A Redis whose clock was set back gives an id again that it lost in a power cut: the entry may be another group's by now.
local function is_own(entry, run, group)
  local names = {}
  for i = 1, #entry, 2 do
    names[entry[i]] = entry[i + 1]
  end
  return names['run'] == run and names['group'] == group
end

local found = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])
if KEYS[3] and found[1] and not is_own(found[1][2], ARGV[5], ARGV[6]) then
  return 0
end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
if not found[1] then
  return 0
end
local dead = {}
if not KEYS[3] then
  for i = 1, math.min(#found[1][2], MOST_FIELDS) do
    table.insert(dead, found[1][2][i])
  end
else
  local kept = redis.call('HMGET', KEYS[3], 'state', 'reserved')
  if kept[1] ~= 'queued' then
    return 0
  end
  redis.call('HSET', KEYS[3], 'state', 'dead', 'reason', ARGV[3], 'reserved', '0')
  redis.call('HINCRBY', KEYS[4], 'reserved', 0 - tonumber(kept[2]))
  dead = {'run', ARGV[5], 'group', ARGV[6]}
end
-- Last, so that no field of the entry's own hides them.
for _, value in ipairs({'reason', ARGV[3], 'deliveries', ARGV[4]}) do
  table.insert(dead, value)
end
redis.call('XADD', KEYS[2], '*', unpack(dead))
return 1
