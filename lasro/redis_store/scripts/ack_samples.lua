-- Acknowledge sample entries and forget them with their blobs, in one step.
-- KEYS: sample stream, set of blob digests. ARGV: consumer group, blob key prefix, entry ids...
for i = 3, #ARGV do
  local found = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])
  if found[1] then
    local fields = found[1][2]
    for j = 1, #fields, 2 do
      if fields[j] == 'blob' then
        redis.call('DEL', ARGV[2] .. fields[j + 1])
        redis.call('SREM', KEYS[2], fields[j + 1])
      end
    end
  end
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
  redis.call('XDEL', KEYS[1], ARGV[i])
end
return #ARGV - 2
