-- Claim entries whose worker is silent. Redis measures silence by its wall clock, which may be set: the caller says what
-- time it should be by its own monotonic clock, and where the two differ all claims count as renewed now. A caller that
-- cannot say (its first call) renews those from the future, which a clock set back would keep from ever being stale.
-- Returns the server's time in ms, where the next call goes on, and per entry its id, fields and deliveries.
-- KEYS: work stream. ARGV: consumer group, consumer, most entries, stale ms, where to go on, expected time in ms or '',
--   most ms that it may differ by, consumer of returned entries, idle ms of those
local function renew(from_future_only)
  for _, claim in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1000000)) do
    local id, owner, idle_ms = claim[1], claim[2], claim[3]
    if owner == ARGV[8] then
      redis.call('XCLAIM', KEYS[1], ARGV[1], owner, 0, id, 'IDLE', ARGV[9], 'JUSTID')
    elseif idle_ms == 0 or not from_future_only then
      redis.call('XCLAIM', KEYS[1], ARGV[1], owner, 0, id, 'JUSTID')
    end
  end
end

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if ARGV[6] == '' then
  renew(true)
elseif math.abs(now_ms - tonumber(ARGV[6])) > tonumber(ARGV[7]) then
  renew(false)
end
local found = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[4], ARGV[5], 'COUNT', ARGV[3])
local entries = {}
for _, entry in ipairs(found[2]) do
  local claim = redis.call('XPENDING', KEYS[1], ARGV[1], entry[1], entry[1], 1)[1]
  table.insert(entries, {entry[1], entry[2], claim[4]})
end
return {now_ms, found[1], entries}
