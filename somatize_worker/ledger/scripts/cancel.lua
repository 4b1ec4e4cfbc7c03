-- Cancel a plan and all that is below it. Queued and waiting plans end at once; the workers that hold leased ones are
-- told; an id never seen gets a tombstone, so that a submission or a wake-up that comes later does nothing.
--
-- KEYS    none
-- ARGV    1 plan id   2 reason (text)   3 packed result of a cancelled plan
--         4 Celery result entry: JSON object without "task_id"   5 ms that finished records are kept
--         6 most plans to end in this call   7 queue of an unseen plan ('' if unknown)
--         8 events kept   9.. events for the plan's log if it ends here
-- Returns {state before ('unseen' for no record), 1 if work for cascade.lua remains, holders as worker, plan, worker, plan, ...,
--         cancelled plan ids, wake-ups}

local id, reason = ARGV[1], ARGV[2]
local how = { reason = reason, result = ARGV[3], meta = ARGV[4], ttl = tonumber(ARGV[5]), now = now_ms() }
local done = { holders = {}, cancelled = {}, wakes = {} }
local record = read_for_end(id)

if not record.state then
  redis.call('HSET', record_key(id), 'created', how.now, 'queue', ARGV[7], 'epoch', 0)
  redis.call('ZADD', 'soma:plans', how.now, id)
  conclude(record, 'cancelled', how.result, reason, how.meta, how.ttl, how.now, done.wakes)
  return { 'unseen', 0, {}, { id }, {} }
end

if record.state == 'leased' then
  flag(record, reason, done.holders)
elseif FROM.cancel[record.state] then
  if logs_own_end(record) then
    append_events(id, 9, #ARGV, tonumber(ARGV[8]))
  end
  conclude(record, 'cancelled', how.result, reason, how.meta, how.ttl, how.now, done.wakes)
  done.cancelled[1] = id
end
-- What an earlier call left, which may lie below this plan, counts as remaining, too.
local more = cancel_below({ id }, tonumber(ARGV[6]), how, done) or redis.call('ZCARD', 'soma:cancelling') > 0
return { record.state, more and 1 or 0, done.holders, done.cancelled, done.wakes }
