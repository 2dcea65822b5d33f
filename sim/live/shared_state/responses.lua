#!lua
-- Whose the stored responses of one pool are.
--
-- KEYS  1 owners: a hash, of ids to what is known of each   2 order: ids of one tenant by the time they were made (zset)
-- ARGV  1 command: add, find or forget   2 id   3 how long a response is known, in microseconds
--       add: 4 the tenant's digest   5 what is known (begins with that digest and a space)   6 how many a tenant has
-- answers {what is known, or ''}; of what is kept for another tenant an add changes nothing

local owners, order = KEYS[1], KEYS[2]
local command, id, ttl_us = ARGV[1], ARGV[2], tonumber(ARGV[3])
for place, kind in pairs({'hash', 'zset'}) do
  local found = redis.call('TYPE', KEYS[place]).ok
  if found ~= kind and found ~= 'none' then redis.call('DEL', KEYS[place]) end
end
local clock = redis.call('TIME')
local now_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2])

local function known()
  local kept = redis.call('HGET', owners, id)
  if not kept then return nil end
  local made_us, data = string.match(kept, '^(%d+) (.*)$')
  if not made_us or now_us - tonumber(made_us) > ttl_us then return nil end
  return data
end

if command == 'find' then return {known() or ''} end
if command == 'forget' then
  redis.call('HDEL', owners, id)
  redis.call('ZREM', order, id)
  return {''}
end
local before = known()
if before and string.sub(before, 1, #ARGV[4] + 1) ~= ARGV[4] .. ' ' then return {before} end
local stamp = string.format('%.0f', now_us)
redis.call('HSET', owners, id, stamp .. ' ' .. ARGV[5])
redis.call('ZADD', order, stamp, id)
local function drop(ids)
  for _, each in ipairs(ids) do
    redis.call('HDEL', owners, each)
    redis.call('ZREM', order, each)
  end
end
drop(redis.call('ZRANGEBYSCORE', order, '-inf', string.format('(%.0f', now_us - ttl_us)))
local more = redis.call('ZCARD', order) - tonumber(ARGV[6])
if more > 0 then drop(redis.call('ZRANGEBYSCORE', order, '-inf', '+inf', 'LIMIT', 0, more)) end
local stays_ms = math.ceil(ttl_us / 1000) + 1000
redis.call('PEXPIRE', owners, stays_ms)
redis.call('PEXPIRE', order, stays_ms)
return {ARGV[5]}
