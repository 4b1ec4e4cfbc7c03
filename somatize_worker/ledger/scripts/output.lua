-- Read the lines that a plan's root and its parts printed, from a number on.
--
-- KEYS    none
-- ARGV    1 plan id   2 number of lines seen already
-- Returns {number of lines printed so far, those after the ones seen}, as of one moment. Lines beyond the limit are gone.

local root = root_of(read(ARGV[1], 'root'))
local total = tonumber(redis.call('HGET', record_key(root), 'output_lines') or 0)
local fresh = total - tonumber(ARGV[2])
if fresh <= 0 then
  return { total, {} }
end
return { total, redis.call('LRANGE', 'soma:output:' .. root, -fresh, -1) }
