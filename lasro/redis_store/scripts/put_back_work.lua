-- Give claims back as if they had never been delivered, idle for as long as told. Without entry ids: all claims of a
-- worker, which goes with them; so do workers that hold nothing and were silent for long.
-- KEYS: work stream. ARGV: consumer group, consumer, whose they become, idle ms, silent ms, entry ids...
local claims = {}
if #ARGV == 5 then
  claims = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1000000, ARGV[2])
end
for i = 6, #ARGV do
  local found = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  table.insert(claims, found[1])
end
for _, claim in ipairs(claims) do
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, claim[1], 'IDLE', ARGV[4], 'RETRYCOUNT', claim[4] - 1, 'JUSTID')
end
if #ARGV == 5 then
  for _, fields in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local about = {}
    for i = 1, #fields, 2 do
      about[fields[i]] = fields[i + 1]
    end
    local is_spare = about['name'] == ARGV[2] or about['idle'] > tonumber(ARGV[5])
    if about['pending'] == 0 and is_spare then
      redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], about['name'])
    end
  end
end
return #claims
