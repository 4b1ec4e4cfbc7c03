-- List the live workers, and forget those whose registration has expired.
--
-- KEYS    none
-- ARGV    none
-- Returns the packed registrations

local alive = {}
for _, id in ipairs(redis.call('SMEMBERS', 'soma:workers')) do
  local registration = redis.call('GET', 'soma:worker:' .. id)
  if registration then
    alive[#alive + 1] = registration
  else
    redis.call('SREM', 'soma:workers', id)
  end
end
return alive
