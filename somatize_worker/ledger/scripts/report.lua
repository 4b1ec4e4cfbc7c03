-- Take in what a running plan tells: events, journal entries, printed lines, the node it is at.
--
-- KEYS    none
-- ARGV    1 plan id   2 root id   3 epoch
--         4 nonce of this call: the same call sent again (after a lost reply) changes nothing
--         5 node last started ('' for no news)
--         6 events kept   7 bytes of output kept   8 number of events   9 number of journal entries
--         10.. events, then path, packed, path, packed, ..., then lines
-- Returns 1, or 0 when the epoch is over

local id, root, epoch, nonce, node = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local record = read(id, 'state', 'epoch', 'report')
if not FROM.report[record.state or ''] or record.epoch ~= epoch then
  return 0
end
if record.report == nonce then
  return 1
end
local journal = 10 + tonumber(ARGV[8])
local output = journal + 2 * tonumber(ARGV[9])
if node == '' then
  redis.call('HSET', record_key(id), 'report', nonce)
else
  redis.call('HSET', record_key(id), 'report', nonce, 'node', node)
end
for i = journal, output - 1, 2 do
  redis.call('HSET', 'soma:journal:' .. id, ARGV[i], ARGV[i + 1])
end
append_events(root, 10, journal - 1, tonumber(ARGV[6]))
append_output(root, output, #ARGV, tonumber(ARGV[7]))
return 1
