-- Read the log of a plan's root.
--
-- KEYS    none
-- ARGV    1 plan id   2 sequence number after which to read
-- Returns {sequence number of the first event that follows, texts}: a text has one or more events, one a line. The first
--         text may begin with events before the one that was asked for. Numbers in the log have no gaps, so an event's
--         number follows from the last number and its place.

local CHUNK = 100

local record = read(ARGV[1], 'root')
local root = root_of(record)
local log, wanted = 'soma:log:' .. root, tonumber(ARGV[2]) + 1
local number = tonumber(redis.call('HGET', record_key(root), 'seq') or 0) + 1
local first = redis.call('LLEN', log)
while first > 0 and number > wanted do
  local texts = redis.call('LRANGE', log, math.max(0, first - CHUNK), first - 1)
  for i = #texts, 1, -1 do
    if number <= wanted then
      break
    end
    number = number - events_in(texts[i])
    first = first - 1
  end
end
return { number, redis.call('LRANGE', log, first, -1) }
