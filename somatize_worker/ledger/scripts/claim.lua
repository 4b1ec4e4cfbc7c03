-- Take the lease of a queued plan: the next epoch begins.
--
-- KEYS    none
-- ARGV    1 plan id   2 worker id
--         3 nonce of this call: the same call sent again (after a lost reply) gets the same lease
--         4 lease in ms   5 events kept for each plan   6.. events (JSON objects) to log and publish
-- Returns nothing when the plan is not to be run now (not queued, not yet due, part of a plan that ended), else
--         {epoch, values of the fields below, journal as path, packed, path, packed, ..., ms left until the deadline,
--          places of unfinished children, ms since the first claim}
--
-- The deadline counts from the first claim, over all attempts. A plan that waits for children is ended by the sweeper
-- when it is over, so it is listed in soma:deadlines.

local id, worker, nonce, lease = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local record = read(id, 'state', 'epoch', 'not_before', 'parent', 'root', 'cancel', 'claim')
local now = now_ms()
local epoch = tonumber(record.epoch or 0)

if not (record.state == 'leased' and record.claim == nonce) then
  if not FROM.claim[record.state or ''] or record.cancel or belongs_to_ended(record) then
    return nil
  end
  if record.not_before then
    if tonumber(record.not_before) > now then
      return nil
    end
    redis.call('HDEL', record_key(id), 'not_before')
    redis.call('ZREM', 'soma:delayed', id)
  end
  epoch = epoch + 1
  redis.call('HSET', record_key(id), 'state', 'leased', 'epoch', epoch, 'worker', worker, 'lease', now + lease,
    'started', now, 'claim', nonce)
  redis.call('HSETNX', record_key(id), 'first', now)
  local timeout = tonumber(redis.call('HGET', record_key(id), 'timeout_ms') or 0)
  if timeout > 0 and redis.call('HSETNX', record_key(id), 'deadline', now + timeout) == 1 then
    redis.call('ZADD', 'soma:deadlines', now + timeout, id)
  end
  redis.call('ZREM', 'soma:queued', id)
  redis.call('ZADD', 'soma:leases', now + lease, id)
  append_events(root_of(record), 6, #ARGV, tonumber(ARGV[5]))
end

local running = redis.call('SMEMBERS', 'soma:children:' .. id)
for i, child in ipairs(running) do
  running[i] = redis.call('HGET', record_key(child), 'path') or ''
end

return {
  epoch,
  redis.call('HMGET', record_key(id), 'kind', 'attempts', 'deaths', 'spec', 'code', 'requirements', 'root', 'path',
    'timeout_ms', 'max_attempts', 'queue', 'priority', 'summary', 'retry', 'seq'),
  redis.call('HGETALL', 'soma:journal:' .. id),
  math.max(0, tonumber(redis.call('HGET', record_key(id), 'deadline') or now) - now),
  running,
  now - tonumber(redis.call('HGET', record_key(id), 'first') or now),
}
