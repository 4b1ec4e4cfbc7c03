-- What the transitions share. Prepended to every script, after the tables FROM and FINISHED that scripts.py
-- generates from states.py: FROM[operation][state] is true where the operation may start from that state.
--
-- Key names are made here from plan ids, because most follow from what a record says (its root, its parent, its
-- watchers). So the scripts run on one server or a replicated one, not on Redis Cluster. KEYS is always empty.

local CHUNK = 1000 -- Lua's unpack() overflows its stack at about 8000 values

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function record_key(id)
  return 'soma:plan:' .. id
end

-- A record's fields as a table; absent ones are false. All are, if there is no such record.
local function read(id, ...)
  local values = redis.call('HMGET', record_key(id), ...)
  local record = { id = id }
  for i, name in ipairs({ ... }) do
    record[name] = values[i]
  end
  return record
end

-- What conclude() needs to know about a plan.
local function read_for_end(id)
  return read(id, 'state', 'epoch', 'parent', 'root', 'path', 'aliases', 'worker', 'started', 'history', 'kind',
    'cancel', 'lease')
end

local function root_of(record)
  return record.root or record.id
end

local function push_all(key, values, first, last)
  local length = 0
  for i = first, last, CHUNK do
    length = redis.call('RPUSH', key, unpack(values, i, math.min(i + CHUNK - 1, last)))
  end
  return length
end

-- Publish in order; nobody can arrive while a script runs, so the first message that nobody hears is the last sent.
local function publish_all(channel, messages)
  for _, message in ipairs(messages) do
    if redis.call('PUBLISH', channel, message) == 0 then
      return
    end
  end
end

-- A log takes entries only while its plan is unfinished: later ones would make keys that never expire.
local function open_log(root)
  local record = read(root, 'state', 'kind')
  if not record.state or FINISHED[record.state] then
    return nil
  end
  return record
end

-- How many events a text has: JSON objects, one a line.
local function events_in(text)
  local count, ends = 1, string.find(text, '\n', 1, true)
  while ends do
    count, ends = count + 1, string.find(text, '\n', ends + 1, true)
  end
  return count
end

-- Append the texts ARGV[first..last], of one or more events each, to the root's log, and publish the events one by one
-- with their numbers as "seq". Numbers have no gaps, so in the log they follow from an event's place (see events.lua),
-- which spares taking texts apart that often nobody hears. The newest `limit` events are kept, and those in the same
-- text as the oldest of them.
local function append_events(root, first, last, limit)
  if last < first then
    return
  end
  local record = open_log(root)
  if not record then
    return
  end
  local count = 0
  for i = first, last do
    count = count + events_in(ARGV[i])
  end
  local log = 'soma:log:' .. root
  local number = redis.call('HINCRBY', record_key(root), 'seq', count) - count
  local logged = redis.call('HINCRBY', record_key(root), 'logged', count)
  push_all(log, ARGV, first, last)
  while logged > limit do
    local oldest = events_in(redis.call('LINDEX', log, 0))
    if logged - oldest < limit then
      break
    end
    redis.call('LPOP', log)
    logged = redis.call('HINCRBY', record_key(root), 'logged', -oldest)
  end
  local channel = (record.kind == 'job' and 'soma:jobs:' or 'soma:events:') .. root
  for i = first, last do
    for event in string.gmatch(ARGV[i], '[^\n]+') do
      number = number + 1
      if redis.call('PUBLISH', channel, '{"seq":' .. number .. ',' .. string.sub(event, 2)) == 0 then
        return -- nobody can arrive while a script runs
      end
    end
  end
end

-- Append the printed lines ARGV[first..last] to the root's output and publish them. The newest `limit` bytes stay.
local function append_output(root, first, last, limit)
  if last < first or not open_log(root) then
    return
  end
  local key, lines, added = 'soma:output:' .. root, {}, 0
  for i = first, last do
    local line = #ARGV[i] > limit and string.sub(ARGV[i], -limit) or ARGV[i]
    lines[#lines + 1] = line
    added = added + #line
  end
  push_all(key, lines, 1, #lines)
  redis.call('HINCRBY', record_key(root), 'output_lines', #lines)
  local bytes = redis.call('HINCRBY', record_key(root), 'output_bytes', added)
  local removed = 0
  while bytes - removed > limit do
    local line = redis.call('LPOP', key)
    if not line then
      break
    end
    removed = removed + #line
  end
  if removed > 0 then
    redis.call('HINCRBY', record_key(root), 'output_bytes', -removed)
  end
  publish_all(key, lines)
end

-- Add the attempt that ends now to the record's history, a stream of MessagePack maps. Its size is bounded: waits for
-- children, which a long loop makes many of, are left out first.
local function add_history(record, why, now)
  local history = record.history or ''
  if #history > (why == 'waiting' and 8192 or 65536) then
    return
  end
  redis.call('HSET', record_key(record.id), 'history', history .. cmsgpack.pack({
    worker = record.worker or '',
    epoch = tonumber(record.epoch),
    started = tonumber(record.started or 0),
    ended = now,
    why = why,
  }))
end

-- Put a plan into the queue, and its wake-up, five values, at the end of `wakes`.
local function requeue(id, now, wakes)
  redis.call('HSET', record_key(id), 'state', 'queued')
  redis.call('ZADD', 'soma:queued', now, id)
  local record = read(id, 'queue', 'priority', 'summary', 'kind')
  for _, value in ipairs({ id, record.queue or '', record.priority or '0', record.summary or '', record.kind or '' }) do
    wakes[#wakes + 1] = value
  end
end

-- A packed result (MessagePack map) with one entry more in front: "state".
local function with_state(result, state)
  local entry = '\165state' .. cmsgpack.pack(state)
  local head = string.byte(result) or 0
  if head >= 0x80 and head < 0x8f then
    return string.char(head + 1) .. entry .. string.sub(result, 2)
  elseif head == 0x8f then
    return '\222\0\16' .. entry .. string.sub(result, 2)
  elseif head == 0xde then
    local count = string.byte(result, 2) * 256 + string.byte(result, 3) + 1
    return '\222' .. string.char(math.floor(count / 256), count % 256) .. entry .. string.sub(result, 4)
  end
  return '\129' .. entry
end

-- The message for watchers: {"plan_id": .., "state": .., "result": {..}}, packed. `result` is packed already.
local function reply_message(id, state, result)
  return '\131\167plan_id' .. cmsgpack.pack(id) .. '\165state' .. cmsgpack.pack(state) .. '\166result' .. result
end

-- The entry that Celery's AsyncResult reads, and the message that it waits for. `meta` is its JSON without "task_id".
local function write_meta(task_id, meta, ttl)
  local key = 'celery-task-meta-' .. task_id
  local text = '{"task_id":' .. cjson.encode(task_id) .. ',' .. string.sub(meta, 2)
  redis.call('SET', key, text, 'PX', ttl)
  redis.call('PUBLISH', key, text)
end

local function write_metas(id, aliases, meta, ttl)
  if meta == '' then
    return
  end
  write_meta(id, meta, ttl)
  for alias in string.gmatch(aliases or '', '[^\n]+') do
    write_meta(alias, meta, ttl)
  end
end

-- Tell an unfinished parent that a child ended. The last child wakes a waiting parent, and so does one that failed.
local function tell_parent(record, state, result, now, wakes)
  redis.call('SREM', 'soma:children:' .. record.parent, record.id)
  local parent_state = redis.call('HGET', record_key(record.parent), 'state')
  if not parent_state or FINISHED[parent_state] then
    return
  end
  redis.call('HSET', 'soma:journal:' .. record.parent, record.path or record.id, with_state(result, state))
  if FROM.wake[parent_state]
      and (state ~= 'succeeded' or redis.call('SCARD', 'soma:children:' .. record.parent) == 0) then
    requeue(record.parent, now, wakes)
  end
end

-- End a plan: the record, everybody who waits for it, and the expiry of all that belongs to it.
-- `record` is from read_for_end(). Unfinished children are noted in soma:cancelling.
local function conclude(record, state, result, cause, meta, ttl, now, wakes)
  local id, key = record.id, record_key(record.id)
  redis.call('HSET', key, 'state', state, 'result', result, 'cause', cause, 'finished', now)
  if record.state == 'leased' then
    redis.call('ZREM', 'soma:leases', id)
    add_history(record, cause ~= '' and cause or state, now)
  else
    redis.call('ZREM', 'soma:queued', id)
    redis.call('ZREM', 'soma:delayed', id)
  end
  redis.call('ZREM', 'soma:deadlines', id)
  if redis.call('SCARD', 'soma:children:' .. id) > 0 then
    redis.call('ZADD', 'soma:cancelling', now, id)
  end
  local watchers = redis.call('SMEMBERS', 'soma:watchers:' .. id)
  if #watchers > 0 then
    local message = reply_message(id, state, result)
    for _, channel in ipairs(watchers) do
      redis.call('PUBLISH', channel, message)
    end
    redis.call('DEL', 'soma:watchers:' .. id)
  end
  write_metas(id, record.aliases, meta, ttl)
  redis.call('PEXPIRE', key, ttl)
  redis.call('PEXPIRE', 'soma:journal:' .. id, ttl)
  redis.call('PEXPIRE', 'soma:children:' .. id, ttl)
  redis.call('ZADD', 'soma:finished', now + ttl, id)
  if record.parent then
    tell_parent(record, state, result, now, wakes)
  else
    redis.call('PEXPIRE', 'soma:log:' .. id, ttl)
    redis.call('PEXPIRE', 'soma:output:' .. id, ttl)
    redis.call('PEXPIRE', 'soma:family:' .. id, ttl)
  end
end

-- Ask the worker that holds a plan to stop it.
local function flag(record, reason, holders)
  redis.call('HSET', record_key(record.id), 'cancel', reason)
  redis.call('PUBLISH', 'soma:control:' .. record.worker, cmsgpack.pack({ cancel = record.id }))
  holders[#holders + 1] = record.worker
  holders[#holders + 1] = record.id
end

-- Cancel what is unfinished below the plans in `work`, all generations, at most `budget` plans. What remains is noted
-- in soma:cancelling, where a later call finds it. `how`: {reason, result, meta, ttl, now};
-- `done`: {holders, cancelled, wakes}, appended to. Returns whether work remains.
local function cancel_below(work, budget, how, done)
  while #work > 0 do
    local parent = table.remove(work)
    for _, id in ipairs(redis.call('SMEMBERS', 'soma:children:' .. parent)) do
      if budget <= 0 then
        work[#work + 1] = parent
        for _, left in ipairs(work) do
          redis.call('ZADD', 'soma:cancelling', how.now, left)
        end
        return true
      end
      local child = read_for_end(id)
      if not child.state then
        redis.call('SREM', 'soma:children:' .. parent, id)
      elseif child.state == 'leased' then
        budget = budget - (child.cancel and 0 or 1)
        flag(child, how.reason, done.holders)
      elseif FROM.cancel[child.state] then
        budget = budget - 1
        conclude(child, 'cancelled', how.result, how.reason, how.meta, how.ttl, how.now, done.wakes)
        done.cancelled[#done.cancelled + 1] = id
      end
      if redis.call('SCARD', 'soma:children:' .. id) > 0 then
        work[#work + 1] = id
      end
    end
    redis.call('ZREM', 'soma:cancelling', parent)
  end
  return false
end

-- Whether a child may still start: not when the plan that it is part of has ended or is being cancelled.
local function belongs_to_ended(record)
  for _, id in ipairs({ record.parent, record.root }) do
    if id and id ~= record.id then
      local above = read(id, 'state', 'cancel')
      if not above.state or FINISHED[above.state] or above.cancel then
        return true
      end
    end
  end
  return false
end

-- Whether a plan that ends without its worker gets a last event: parts of a plan and jobs do not.
local function logs_own_end(record)
  return not record.parent and record.kind ~= 'job'
end

-- Make a record. ARGV[first..last] are field, value, field, value, ...
local function create(id, first, last, now)
  local key = record_key(id)
  redis.call('HSET', key, 'state', 'queued', 'epoch', 0, 'attempts', 0, 'created', now, unpack(ARGV, first, last))
  redis.call('ZADD', 'soma:queued', now, id)
  redis.call('ZADD', 'soma:plans', now, id)
end
