#!lua
-- The book of leases of one pool: who holds which part of each limit, and until when.
--
-- KEYS  1 book: a hash, version, data (JSON), mac, short (how often somebody lacked something), and until:NAME of each,
--         which counts beside what data says of it
-- ARGV  1 command: read, look or write   2 how long the book stays, in milliseconds
--       look, read: 3 name   4 ttl in microseconds; who reads may leave them out, and prolongs nothing
--       write: 3 the version that was read   4 the next, which is larger   5 data   6 mac   7 name   8 ttl in
--              microseconds, 0 of who leaves   9 1 if it lacks something   10, ... who is in the book no more
-- answers {time in us, version, ...}: of a read data, mac, short, and NAME, until of each; of a look whether its parts
-- are good for another ttl, and short; of a write in the place of the version whether it was written: another may be
-- faster, and who is to be left out may have said meanwhile that it is there

local book, command = KEYS[1], ARGV[1]
local kind = redis.call('TYPE', book).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', book) end
local clock = redis.call('TIME')
local now_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local now = string.format('%.0f', now_us)
local is_good = false
if command ~= 'write' and ARGV[3] then
  local place = 'until:' .. ARGV[3]
  is_good = (tonumber(redis.call('HGET', book, place) or '') or 0) >= now_us
  if is_good then
    redis.call('HSET', book, place, string.format('%.0f', now_us + tonumber(ARGV[4])))
    redis.call('PEXPIRE', book, ARGV[2])
  end
end
if command == 'look' then
  local kept = redis.call('HMGET', book, 'version', 'short')
  return {now, tonumber(kept[1] or '') or 0, is_good and 1 or 0, tonumber(kept[2] or '') or 0}
end
if command == 'read' then
  local kept, found = redis.call('HGETALL', book), {}
  local answer = {now, 0, '', '', 0}
  for place = 1, #kept, 2 do
    local name = string.match(kept[place], '^until:(.*)$')
    if name then
      answer[#answer + 1] = name
      answer[#answer + 1] = kept[place + 1]
    else
      found[kept[place]] = kept[place + 1]
    end
  end
  answer[2] = tonumber(found.version or '') or 0
  answer[3], answer[4] = found.data or '', found.mac or ''
  answer[5] = tonumber(found.short or '') or 0
  return answer
end
local version = tonumber(redis.call('HGET', book, 'version') or '') or 0
if version ~= tonumber(ARGV[3]) then return {now, 0} end
for place = 10, #ARGV do
  if (tonumber(redis.call('HGET', book, 'until:' .. ARGV[place]) or '') or 0) >= now_us then return {now, 0} end
end
for place = 10, #ARGV do redis.call('HDEL', book, 'until:' .. ARGV[place]) end
redis.call('HSET', book, 'version', ARGV[4], 'data', ARGV[5], 'mac', ARGV[6])
local ttl_us = tonumber(ARGV[8])
if ttl_us > 0 then
  redis.call('HSET', book, 'until:' .. ARGV[7], string.format('%.0f', now_us + ttl_us))
else
  redis.call('HDEL', book, 'until:' .. ARGV[7])
end
if ARGV[9] == '1' then redis.call('HINCRBY', book, 'short', 1) end
redis.call('PEXPIRE', book, ARGV[2])
return {now, 1}
