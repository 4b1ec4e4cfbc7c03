-- Record a plan, once, and put its wake-up on the queue.
--
-- KEYS    none
-- ARGV    1 plan id
--         2 nonce of this call: the same call sent again (after a lost reply) counts as the one that created
--         3 content digest
--         4 reply channel, told when the plan ends ('' for none)
--         5 aliases: other Celery task ids that stand for the plan, one a line
--         6 list on which the wake-up goes ('' for none: the caller sends it)   7 the wake-up's message
--         8.. fields of a new record: name, value, name, value, ...
-- Returns {what, state}; what is 'created', 'known' (same content), 'conflict' (other content; nothing is changed) or
--         'cancelled' (cancelled before it was seen).

local id, nonce, digest, reply, aliases = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local known = read(id, 'state', 'digest', 'nonce', 'aliases')

if not known.state then
  create(id, 8, #ARGV, now_ms())
  redis.call('HSET', record_key(id), 'digest', digest, 'nonce', nonce)
  if aliases ~= '' then
    redis.call('HSET', record_key(id), 'aliases', aliases)
  end
  if reply ~= '' then
    redis.call('SADD', 'soma:watchers:' .. id, reply)
  end
  if ARGV[6] ~= '' then
    redis.call('LPUSH', ARGV[6], ARGV[7])
  end
  return { 'created', 'queued' }
end

-- A tombstone has no content yet: it takes this one's description, and stays cancelled.
local what = 'known'
if not known.digest then
  what = 'cancelled'
  redis.call('HSET', record_key(id), 'digest', digest, unpack(ARGV, 8, #ARGV))
elseif known.digest ~= digest then
  return { 'conflict', known.state }
elseif known.nonce == nonce then
  what = 'created'
end

local listed = known.aliases or ''
for alias in string.gmatch(aliases, '[^\n]+') do
  if not string.find('\n' .. listed .. '\n', '\n' .. alias .. '\n', 1, true) then
    listed = listed == '' and alias or listed .. '\n' .. alias
    redis.call('HSET', record_key(id), 'aliases', listed)
    local text = redis.call('GET', 'celery-task-meta-' .. id)
    if text then
      local meta = '{' .. string.sub(text, #('{"task_id":' .. cjson.encode(id) .. ',') + 1)
      write_meta(alias, meta, math.max(1, redis.call('PTTL', 'celery-task-meta-' .. id)))
    end
  end
end
if reply ~= '' and not FINISHED[known.state] then
  redis.call('SADD', 'soma:watchers:' .. id, reply)
end
return { what, known.state }
