-- Go on cancelling below plans that ended, or were cancelled, with unfinished children.
--
-- KEYS    none
-- ARGV    1 reason (text)   2 packed result of a cancelled plan   3 Celery result entry, as in cancel.lua
--         4 ms that finished records are kept   5 most plans to end in this call
-- Returns {1 if work remains, holders as worker, plan, worker, plan, ..., cancelled plan ids, wake-ups}

local how = { reason = ARGV[1], result = ARGV[2], meta = ARGV[3], ttl = tonumber(ARGV[4]), now = now_ms() }
local done = { holders = {}, cancelled = {}, wakes = {} }
local work = redis.call('ZRANGE', 'soma:cancelling', 0, 99)
local more = cancel_below(work, tonumber(ARGV[5]), how, done)
if redis.call('ZCARD', 'soma:cancelling') > 0 then
  more = true
end
return { more and 1 or 0, done.holders, done.cancelled, done.wakes }
