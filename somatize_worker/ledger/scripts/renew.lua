-- Renew all the leases that a worker holds.
--
-- KEYS    none
-- ARGV    1 lease in ms   2.. plan id, epoch, plan id, epoch, ...
-- Returns for each plan 'held', 'cancel' (held, and to be stopped) or 'lost' (the epoch is over)

local now = now_ms()
local expiry = now + tonumber(ARGV[1])
local answers = {}
for i = 2, #ARGV, 2 do
  local record = read(ARGV[i], 'state', 'epoch', 'cancel')
  if record.state == 'leased' and record.epoch == ARGV[i + 1] then
    redis.call('HSET', record_key(ARGV[i]), 'lease', expiry)
    redis.call('ZADD', 'soma:leases', expiry, ARGV[i])
    answers[#answers + 1] = record.cancel and 'cancel' or 'held'
  else
    answers[#answers + 1] = 'lost'
  end
end
return answers
