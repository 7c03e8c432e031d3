-- Remove every key of a run; work entries of its groups are dropped by the worker that meets them.
-- KEYS: set of group ids, set of blob digests, then the keys to delete as they are.
-- ARGV: group key prefix, blob key prefix
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  redis.call('DEL', ARGV[1] .. id)
end
for _, sha256 in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  redis.call('DEL', ARGV[2] .. sha256)
end
return redis.call('DEL', unpack(KEYS))
