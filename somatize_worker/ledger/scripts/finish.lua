-- End a leased plan, and tell everybody who waits for it.
--
-- KEYS    none
-- ARGV    1 plan id   2 epoch   3 succeeded, failed or cancelled   4 packed result   5 cause (text)
--         6 node last started ('' for no news)
--         7 Celery result entry: JSON object without "task_id" ('' for none)
--         8 ms that finished records are kept   9 events kept   10 bytes of output kept
--         11 '1' if the worker that held the lease died
--         12 lease that the caller saw, refused if it was renewed since ('' for no such check)
--         13 number of events   14.. events, then lines
-- Returns {0} when the epoch is over, else {1, 1 if children remain to be cancelled, wake-ups}. The same call sent
--         again (after a lost reply) is accepted again.

local id, epoch, state, result, node = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[6]
local record = read_for_end(id)
local wakes = {}
if not record.state or record.epoch ~= epoch or (ARGV[12] ~= '' and record.lease ~= ARGV[12]) then
  return { 0 }
end
if record.state == state and redis.call('HGET', record_key(id), 'result') == result then
  if record.parent and redis.call('HGET', record_key(record.parent), 'state') == 'queued' then
    requeue(record.parent, now_ms(), wakes)
  end
elseif FROM.finish[record.state] then
  local output = 14 + tonumber(ARGV[13])
  append_output(root_of(record), output, #ARGV, tonumber(ARGV[10]))
  append_events(root_of(record), 14, output - 1, tonumber(ARGV[9]))
  if node ~= '' then
    redis.call('HSET', record_key(id), 'node', node)
  end
  if state == 'failed' then
    redis.call('HINCRBY', record_key(id), 'attempts', 1)
  end
  if ARGV[11] == '1' then
    redis.call('HINCRBY', record_key(id), 'deaths', 1)
  end
  conclude(record, state, result, ARGV[5], ARGV[7], tonumber(ARGV[8]), now_ms(), wakes)
else
  return { 0 }
end
return { 1, redis.call('SCARD', 'soma:children:' .. id) > 0 and 1 or 0, wakes }
