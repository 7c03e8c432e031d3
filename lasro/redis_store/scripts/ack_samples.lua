-- Acknowledge sample entries for one group of readers, and forget with their blobs such as every group has
-- acknowledged. Where there are several groups, those are the entries below the oldest that any of them still needs.
-- KEYS: sample stream, set of blob digests. ARGV: consumer group, blob key prefix,
--   then of each entry its id and the digest of its blob: '' where it has none, '?' where that is not known
local function forget_blob(digest)
  redis.call('DEL', ARGV[2] .. digest)
  redis.call('SREM', KEYS[2], digest)
end

local function forget_blobs_of(entries)
  for _, entry in ipairs(entries) do
    for i = 1, #entry[2], 2 do
      if entry[2][i] == 'blob' then
        forget_blob(entry[2][i + 1])
      end
    end
  end
end

local function parsed(id)
  local ms, number = string.match(id, '(%d+)-(%d+)')
  return tonumber(ms), tonumber(number)
end

local function is_before(a, b)
  local a_ms, a_number = parsed(a)
  local b_ms, b_number = parsed(b)
  return a_ms < b_ms or (a_ms == b_ms and a_number < b_number)
end

-- The oldest entry that a group has not acknowledged, read or not.
local function needed_from(about)
  local pending = redis.call('XPENDING', KEYS[1], about['name'])
  if pending[1] > 0 then
    return pending[2]
  end
  local ms, number = parsed(about['last-delivered-id'])
  return string.format('%.0f-%.0f', ms, number + 1)
end

if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
local ids = {}
for i = 3, #ARGV, 2 do
  table.insert(ids, ARGV[i])
end
redis.call('XACK', KEYS[1], ARGV[1], unpack(ids))
local groups = redis.call('XINFO', 'GROUPS', KEYS[1])
if #groups < 2 then
  for i = 3, #ARGV, 2 do
    if ARGV[i + 1] == '?' then
      forget_blobs_of(redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i]))
    elseif ARGV[i + 1] ~= '' then
      forget_blob(ARGV[i + 1])
    end
  end
  return redis.call('XDEL', KEYS[1], unpack(ids))
end
local floor
for _, fields in ipairs(groups) do
  local about = {}
  for i = 1, #fields, 2 do
    about[fields[i]] = fields[i + 1]
  end
  local from = needed_from(about)
  if not floor or is_before(from, floor) then
    floor = from
  end
end
forget_blobs_of(redis.call('XRANGE', KEYS[1], '-', '(' .. floor))
return redis.call('XTRIM', KEYS[1], 'MINID', '=', floor)
