#!lua
-- The book of leases of one pool: who holds which part of each limit, and until when.
--
-- KEYS  1 book: a hash, version and data (JSON), mac
-- ARGV  1 command: read, or write   2 how long the book stays, in milliseconds
--       write: 3 the version that was read   4 the next, which is larger   5 data   6 mac
-- answers {time in us, version, data, mac}; of a write {time in us, whether it was written}: another may be faster

local book, command = KEYS[1], ARGV[1]
local kind = redis.call('TYPE', book).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', book) end
local clock = redis.call('TIME')
local now_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local kept = redis.call('HMGET', book, 'version', 'data', 'mac')
local version = tonumber(kept[1] or '') or 0
if command == 'read' then
  return {string.format('%.0f', now_us), version, kept[2] or '', kept[3] or ''}
end
if version ~= tonumber(ARGV[3]) then return {string.format('%.0f', now_us), 0} end
redis.call('HSET', book, 'version', ARGV[4], 'data', ARGV[5], 'mac', ARGV[6])
redis.call('PEXPIRE', book, ARGV[2])
return {string.format('%.0f', now_us), 1}
