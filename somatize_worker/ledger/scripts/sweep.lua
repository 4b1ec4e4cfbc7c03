-- One look over all plans, by the one worker that holds the sweeper's lock.
--
-- KEYS    none
-- ARGV    1 who looks   2 ms that the lock lasts   3 most entries of each kind to return
--         4 ms after which a wake-up may be taken for lost   5 where to go on in the queue (a rank)
--         6.. suffixes of the lists that a Celery queue consists of, one for every three priorities
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

-- Plans whose wake-up is lost: it is not in its list any more, and nobody has acted on it. (One that a worker has taken
-- but not yet acted on looks the same; one more does no harm.) A list is first in, first out for first wake-ups, so one
-- has left it when the next to be taken was sent later, or when it is empty. When that next one was sent is known of a
-- plan that was woken once only, when it was created; in a busy queue that is nearly every plan. (Later wake-ups, and
-- those of child plans, are put at the front.)
local function list_of(queue, priority)
  local step = math.max(0, math.min(math.floor(priority / 3), #ARGV - 6))
  return queue .. ARGV[6 + step]
end
local reached = {}
local function reached_by(list)
  if reached[list] == nil then
    reached[list] = 0
    local message = redis.call('LINDEX', list, -1)
    if not message then
      reached[list] = now
    else
      local next_id = string.match(message, '"id": *"([^"]+)"') or ''
      local sent, plan = redis.call('ZSCORE', 'soma:queued', next_id), read(next_id, 'created', 'parent')
      if sent and sent == plan.created and not plan.parent then
        reached[list] = tonumber(sent)
      end
    end
  end
  return reached[list]
end
-- The plans that wait longest are looked at each time, the others in turns.
local old, often = now - tonumber(ARGV[4]), math.floor(most / 4)
local waiting = redis.call('ZRANGEBYSCORE', 'soma:queued', '-inf', old, 'LIMIT', 0, often)
local rest = redis.call('ZRANGEBYSCORE', 'soma:queued', '-inf', old, 'LIMIT', often + offset, most - often)
for _, id in ipairs(rest) do
  waiting[#waiting + 1] = id
end
local moved = 0
for _, id in ipairs(waiting) do
  local record = read(id, 'state', 'queue', 'priority')
  if record.state ~= 'queued' then
    moved = moved + redis.call('ZREM', 'soma:queued', id)
  else
    local list = list_of(record.queue or '', tonumber(record.priority or 0))
    if reached_by(list) - tonumber(ARGV[4]) / 10 > tonumber(redis.call('ZSCORE', 'soma:queued', id)) then
      requeue(id, now, wakes)
      moved = moved + 1
    end
  end
end

-- Finished records that have expired.
local gone = redis.call('ZRANGEBYSCORE', 'soma:finished', '-inf', now, 'LIMIT', 0, most)
if #gone > 0 then
  redis.call('ZREM', 'soma:plans', unpack(gone))
  redis.call('ZREM', 'soma:finished', unpack(gone))
end

local next_offset = #rest == most - often and math.max(0, offset + #rest - moved) or 0
return { 1, expired, wakes, redis.call('ZCARD', 'soma:cancelling'), next_offset }
