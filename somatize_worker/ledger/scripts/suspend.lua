-- Give a lease back until child plans have ended; creates the children that do not exist yet. Or create them, and go
-- on with what there is to do beside them.
--
-- KEYS    none
-- ARGV    1 plan id   2 epoch   3 events kept   4 bytes of output kept
--         5 number of events   6 number of journal entries   7 number of printed lines
--         8 '1' to keep the lease
--         9.. events, then path, packed, path, packed, ..., then lines,
--         then for each child: plan id, digest, path, number n of values, n values: field, value, field, value, ...
--         (for one that exists already: plan id, '', '', 0)
-- Returns {'ok', wake-ups}: of the new children, or of this plan if it need not wait (nothing left to wait for, or a
--         child has failed);
--         {'stale'} when the epoch is over;
--         {'cancel', reason, 1 if its log wants a last event} when the plan is being cancelled (the lease stays);
--         {'conflict', child id} when a child's id is taken by other content (nothing is changed).
--         The same call sent again (after a lost reply) is accepted again.

local id, epoch = ARGV[1], ARGV[2]
local record = read(id, 'state', 'epoch', 'root', 'parent', 'cancel', 'worker', 'started', 'history', 'settled',
  'kind')
local now, wakes = now_ms(), {}
local journal = 9 + tonumber(ARGV[5])
local output = journal + 2 * tonumber(ARGV[6])
local children = output + tonumber(ARGV[7])
local stays = ARGV[8] == '1'

if not record.state or record.epoch ~= epoch then
  return { 'stale' }
end
if not stays and record.settled == epoch .. ':suspend' and (record.state == 'waiting' or record.state == 'queued') then
  local at = children
  while at <= #ARGV do
    if redis.call('HGET', record_key(ARGV[at]), 'state') == 'queued' then
      requeue(ARGV[at], now, wakes)
    end
    at = at + 4 + tonumber(ARGV[at + 3])
  end
  if record.state == 'queued' then
    requeue(id, now, wakes)
  end
  return { 'ok', wakes }
end
if not FROM.suspend[record.state] then
  return { 'stale' }
end
if record.cancel or belongs_to_ended(record) then
  return { 'cancel', record.cancel or 'the plan that it is part of ended', logs_own_end(record) and 1 or 0 }
end

-- Look first, change nothing: a conflict must leave no half of the children behind.
local plans = {}
local at = children
while at <= #ARGV do
  local plan = read(ARGV[at], 'state', 'digest', 'parent', 'path')
  plan.new_digest, plan.new_path, plan.first = ARGV[at + 1], ARGV[at + 2], at + 4
  plan.last = at + 3 + tonumber(ARGV[at + 3])
  if plan.digest and (plan.parent ~= id or (plan.new_digest ~= '' and plan.digest ~= plan.new_digest)) then
    return { 'conflict', plan.id }
  end
  plans[#plans + 1] = plan
  at = plan.last + 1
end

append_output(root_of(record), output, children - 1, tonumber(ARGV[4]))
append_events(root_of(record), 9, journal - 1, tonumber(ARGV[3]))
for i = journal, output - 1, 2 do
  redis.call('HSET', 'soma:journal:' .. id, ARGV[i], ARGV[i + 1])
end

local pending, failed = 0, false
for _, plan in ipairs(plans) do
  local key = record_key(plan.id)
  if plan.state == 'queued' and stays then
    requeue(plan.id, now, wakes) -- the same call sent again: nobody has sent its wake-up yet
  elseif not plan.state and plan.new_digest ~= '' then
    create(plan.id, plan.first, plan.last, now)
    redis.call('HSET', key, 'digest', plan.new_digest, 'parent', id, 'root', root_of(record), 'path', plan.new_path)
    redis.call('SADD', 'soma:family:' .. root_of(record), plan.id)
    requeue(plan.id, now, wakes)
    plan.state = 'queued'
  end
  if plan.state and FINISHED[plan.state] then
    -- It ended before this plan waited: normally noted at that time, but not for one cancelled before it existed.
    local result = redis.call('HGET', key, 'result') or '\128'
    redis.call('HSETNX', 'soma:journal:' .. id, plan.path or plan.new_path, with_state(result, plan.state))
    failed = failed or plan.state ~= 'succeeded'
  elseif plan.state then
    redis.call('SADD', 'soma:children:' .. id, plan.id)
    pending = pending + 1
  end
end

if stays then
  return { 'ok', wakes }
end
add_history(record, 'waiting', now)
redis.call('ZREM', 'soma:leases', id)
redis.call('HSET', record_key(id), 'state', 'waiting', 'settled', epoch .. ':suspend', 'worker', '',
  'cause', 'waiting for ' .. pending .. ' child plans')
if pending == 0 or failed then
  requeue(id, now, wakes)
end
return { 'ok', wakes }
