-- Read the log of a plan's root.
--
-- KEYS    none
-- ARGV    1 plan id   2 sequence number after which to read
-- Returns {sequence number of the first event that follows, events}. Numbers in the log have no gaps, so the place of
--         a number follows from the last number and the log's length.

local record = read(ARGV[1], 'root')
local root = root_of(record)
local last = tonumber(redis.call('HGET', record_key(root), 'seq') or 0)
local oldest = last - redis.call('LLEN', 'soma:log:' .. root) + 1
local first = math.max(tonumber(ARGV[2]) + 1, oldest)
if first > last then
  return { first, {} }
end
return { first, redis.call('LRANGE', 'soma:log:' .. root, first - oldest, -1) }
