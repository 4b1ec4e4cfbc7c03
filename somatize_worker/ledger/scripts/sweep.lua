-- One look over all plans, by the one worker that holds the sweeper's lock.
--
-- KEYS    none
-- ARGV    1 who looks   2 ms that the lock lasts   3 most entries of each kind to return
--         4 ms after which a wake-up may be taken for lost   5 where to go on in the queue (a rank)
--         6.. suffixes of the lists that a Celery queue consists of ('' first, then one for each priority)
-- Returns {0} when somebody else holds the lock, else
--         {1, expired leases as plan id, epoch, lease, ..., wake-ups, number of plans in soma:cancelling,
--         where to go on in the queue}

local who, most, offset = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[5])
local holder = redis.call('GET', 'soma:sweeper')
if holder and holder ~= who then
  return { 0 }
end
redis.call('SET', 'soma:sweeper', who, 'PX', ARGV[2])
local now, expired, wakes = now_ms(), {}, {}

for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'soma:leases', '-inf', now, 'LIMIT', 0, most)) do
  local record = read(id, 'state', 'epoch', 'lease')
  if record.state == 'leased' then
    for _, value in ipairs({ id, record.epoch, record.lease }) do
      expired[#expired + 1] = value
    end
  else
    redis.call('ZREM', 'soma:leases', id)
  end
end

-- Plans whose delay is over.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'soma:delayed', '-inf', now, 'LIMIT', 0, most)) do
  redis.call('ZREM', 'soma:delayed', id)
  if redis.call('HGET', record_key(id), 'state') == 'queued' then
    requeue(id, now, wakes)
  end
end

-- Plans whose deadline passed while they waited for children: woken, they end with the next claim.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'soma:deadlines', '-inf', now, 'LIMIT', 0, most)) do
  redis.call('ZREM', 'soma:deadlines', id)
  if FROM.wake[redis.call('HGET', record_key(id), 'state') or ''] then
    requeue(id, now, wakes)
  end
end

-- Plans that wait although their queue is empty: nobody will ever be told of them. (A wake-up that a worker has taken
-- but not yet acted on looks the same; one more does no harm.)
local empty = {}
local function is_empty(queue)
  if empty[queue] == nil then
    empty[queue] = true
    for i = 6, #ARGV do
      if redis.call('LLEN', queue .. ARGV[i]) > 0 then
        empty[queue] = false
      end
    end
  end
  return empty[queue]
end
local waiting = redis.call('ZRANGEBYSCORE', 'soma:queued', '-inf', now - tonumber(ARGV[4]), 'LIMIT', offset, most)
for _, id in ipairs(waiting) do
  local record = read(id, 'state', 'queue')
  if record.state ~= 'queued' then
    redis.call('ZREM', 'soma:queued', id)
  elseif is_empty(record.queue or '') then
    requeue(id, now, wakes)
  end
end

-- Finished records that have expired.
local gone = redis.call('ZRANGEBYSCORE', 'soma:finished', '-inf', now, 'LIMIT', 0, most)
if #gone > 0 then
  redis.call('ZREM', 'soma:plans', unpack(gone))
  redis.call('ZREM', 'soma:finished', unpack(gone))
end

local next_offset = #waiting == most and offset + most or 0
return { 1, expired, wakes, redis.call('ZCARD', 'soma:cancelling'), next_offset }
