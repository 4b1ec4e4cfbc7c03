-- Ask to be told on a channel when a plan ends.
--
-- KEYS    none
-- ARGV    1 plan id   2 channel
-- Returns 'unknown', 'watching', or the whole record (field, value, ...) of a plan that has ended already

local state = redis.call('HGET', record_key(ARGV[1]), 'state')
if not state then
  return 'unknown'
elseif FINISHED[state] then
  return redis.call('HGETALL', record_key(ARGV[1]))
end
redis.call('SADD', 'soma:watchers:' .. ARGV[1], ARGV[2])
return 'watching'
