-- Keep scores for a while.
-- KEYS: score keys. ARGV: seconds, then a score per key.
for i, key in ipairs(KEYS) do
  redis.call('SET', key, ARGV[i + 1], 'EX', ARGV[1])
end
return #KEYS
