-- Remove the keys of a run, some of them at a time; to be called again until it returns 0.
-- KEYS: work stream, dead-letter stream, runs, set of group ids, set of blob digests, then keys to delete as they are.
-- ARGV: run, group key prefix, blob key prefix, most keys at a time, consumer group
local function remove_members(set, prefix)
  local names = redis.call('SPOP', set, ARGV[4])
  for _, name in ipairs(names) do
    redis.call('UNLINK', prefix .. name)
  end
  return #names
end

local function remove_entries(stream, group)
  for _, entry in ipairs(redis.call('XRANGE', stream, '-', '+')) do
    local fields = entry[2]
    for i = 1, #fields, 2 do
      if fields[i] == 'run' and fields[i + 1] == ARGV[1] then
        if group then
          redis.pcall('XACK', stream, group, entry[1])
        end
        redis.call('XDEL', stream, entry[1])
      end
    end
  end
end

local removed = remove_members(KEYS[4], ARGV[2]) + remove_members(KEYS[5], ARGV[3])
if removed > 0 then
  return removed
end
remove_entries(KEYS[1], ARGV[5])
remove_entries(KEYS[2])
redis.call('SREM', KEYS[3], ARGV[1])
redis.call('UNLINK', unpack(KEYS, 4))
return 0
