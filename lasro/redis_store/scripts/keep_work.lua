-- Renew a worker's claims. Returns the ids of those that are no longer its own: taken over, given up, or deleted.
-- KEYS: work stream. ARGV: consumer group, consumer, entry ids...
local lost = {}
for i = 3, #ARGV do
  if redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])[1] then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
  else
    table.insert(lost, ARGV[i])
  end
end
return lost
