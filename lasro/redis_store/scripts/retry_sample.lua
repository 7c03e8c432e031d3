-- Put a dead-lettered sample back on its stream, or forget it with its blob.
-- KEYS: dead-letter stream, sample stream, set of blob digests. ARGV: entry id, blob key prefix, '1' to put it back
local found = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])
if not found[1] then
  return 0
end
local fields = found[1][2]
redis.call('XDEL', KEYS[1], ARGV[1])
if ARGV[3] == '1' then
  redis.call('XADD', KEYS[2], '*', unpack(fields, 1, #fields - 4))
  return 1
end
for i = 1, #fields - 4, 2 do
  if fields[i] == 'blob' then
    redis.call('DEL', ARGV[2] .. fields[i + 1])
    redis.call('SREM', KEYS[3], fields[i + 1])
  end
end
return 1
