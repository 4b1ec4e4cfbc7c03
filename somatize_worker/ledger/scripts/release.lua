-- Hand a leased plan back to be run again: now, or after a delay.
--
-- KEYS    none
-- ARGV    1 plan id   2 epoch   3 why (text)   4 '1' if this counts as a failed attempt   5 delay in ms
--         6 '1' if the worker that held the lease died
--         7 lease that the caller saw, refused if it was renewed since ('' for no such check)
-- Returns {'ok', wake-ups} (none if delayed: the sweeper sends it when due);
--         {'stale'} when the epoch is over;
--         {'cancel', reason, 1 if its log wants a last event} when the plan is being cancelled (the lease stays).
--         The same call sent again (after a lost reply) is accepted again.

local id, epoch, why, delay = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[5])
local record = read_for_end(id)
local now, wakes = now_ms(), {}

if not record.state or record.epoch ~= epoch or (ARGV[7] ~= '' and record.lease ~= ARGV[7]) then
  return { 'stale' }
end
if record.state == 'queued' and redis.call('HGET', record_key(id), 'settled') == epoch .. ':release' then
  if not redis.call('HGET', record_key(id), 'not_before') then
    requeue(id, now, wakes)
  end
  return { 'ok', wakes }
end
if not FROM.release[record.state] then
  return { 'stale' }
end
if record.cancel or belongs_to_ended(record) then
  return { 'cancel', record.cancel or 'the plan that it is part of ended', logs_own_end(record) and 1 or 0 }
end

add_history(record, why, now)
redis.call('ZREM', 'soma:leases', id)
redis.call('HSET', record_key(id), 'cause', why, 'settled', epoch .. ':release', 'worker', '')
if ARGV[4] == '1' then
  redis.call('HINCRBY', record_key(id), 'attempts', 1)
end
if ARGV[6] == '1' then
  redis.call('HINCRBY', record_key(id), 'deaths', 1)
end
if delay > 0 then
  redis.call('HSET', record_key(id), 'state', 'queued', 'not_before', now + delay)
  redis.call('ZADD', 'soma:delayed', now + delay, id)
else
  requeue(id, now, wakes)
end
return { 'ok', wakes }
