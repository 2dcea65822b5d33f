#!lua
-- The log of one pool's events, shared by its gateways: every step below is atomic.
--
-- KEYS  1 events: a stream, entry <seq>-0 has the field e =
--         "<time in us> <gateway> <number> <signature> <event as JSON>"; of a lost gateway the last three are
--         0 - ["gateway_lost"], since this script says so and not a gateway
--       2 meta: a hash, epoch origin_us last_us seq tick_due_us config leader views
--       3 alive: a sorted set of gateways, by the time in us until which each is taken to live
--       4 snapshot: a hash, seq, data and mac
--       5 sender: a hash, number of this gateway's last event in the log, session counted by its joins
--       6 views: a hash, what each gateway sees of the replicas; meta's views counts its changes
-- ARGV  1 command: join, append, save, configure or leave   2 gateway   3 ttl_us   then as each command says
--
-- Times are microseconds since the log began. They never decrease: where Redis's clock goes back, the origin goes with
-- it. All numbers stay below 2^53, so Lua's doubles hold them. A key that was lost, cut short or replaced by something
-- else is found at the next join, and the log begins anew from a gateway's copy.

local events, meta, alive, snapshot, sender, views = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local command, me, ttl_us = ARGV[1], ARGV[2], tonumber(ARGV[3])

local function text(number) return string.format('%.0f', number) end

if command == 'join' or command == 'leave' then  -- what somebody else has put in the place of a key is no log
  local kinds = {'stream', 'hash', 'zset', 'hash', 'hash', 'hash'}
  for i, kind in ipairs(kinds) do
    local found = redis.call('TYPE', KEYS[i]).ok
    if found ~= kind and found ~= 'none' then redis.call('DEL', KEYS[i]) end
  end
end

local clock = redis.call('TIME')
local wall_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local state = redis.call('HMGET', meta, 'epoch', 'origin_us', 'last_us', 'seq', 'tick_due_us', 'config', 'leader')
local epoch = state[1]
for i = 2, 5 do if not tonumber(state[i] or '') then epoch = false end end
if not state[6] then epoch = false end
local now_us, seq

local function begin(origin_us, last_us, number)
  now_us, seq = wall_us - origin_us, number
  if now_us < last_us then
    redis.call('HSET', meta, 'origin_us', text(wall_us - last_us))
    now_us = last_us
  end
end

local function append(gateway, number, signature, payload)
  seq = seq + 1
  local entry = text(now_us) .. ' ' .. gateway .. ' ' .. number .. ' ' .. signature .. ' ' .. payload
  redis.call('XADD', events, text(seq) .. '-0', 'e', entry)
end

local function lose(gateway)
  redis.call('ZREM', alive, gateway)
  if redis.call('HDEL', views, gateway) == 1 then redis.call('HINCRBY', meta, 'views', 1) end
  append(gateway, '0', '-', '["gateway_lost"]')
end

-- Renew the caller's place, say who has lost theirs, and see that somebody leads; returns who.
local function renew()
  redis.call('ZADD', alive, text(now_us + ttl_us), me)
  for _, gateway in ipairs(redis.call('ZRANGEBYSCORE', alive, '-inf', '(' .. text(now_us))) do lose(gateway) end
  local leader = redis.call('HGET', meta, 'leader')
  if not leader or not redis.call('ZSCORE', alive, leader) then
    leader = me
    redis.call('HSET', meta, 'leader', me)
  end
  return leader
end

local function close() redis.call('HSET', meta, 'seq', text(seq), 'last_us', text(now_us)) end

-- The number of the first entry, where the entries up to the last one are all there; nothing where they are not.
local function first_of_whole()
  local first = redis.call('XRANGE', events, '-', '+', 'COUNT', 1)[1]
  if not first then return seq == 0 and 1 or nil end
  local last = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
  local number = tonumber(string.match(first[1], '^(%d+)-0$') or '')
  if not number or last[1] ~= text(seq) .. '-0' then return nil end
  return redis.call('XLEN', events) == seq - number + 1 and number or nil
end

-- Whether the entry that the caller saw last is still what it saw, and the next one still here. 0: it saw none.
local function in_step(last_seq, last_entry)
  if last_seq > seq then return false end
  if last_seq == 0 then
    local first = redis.call('XRANGE', events, '-', '+', 'COUNT', 1)[1]
    return seq == 0 or (first ~= nil and first[1] == '1-0')
  end
  local found = redis.call('XRANGE', events, text(last_seq) .. '-0', text(last_seq) .. '-0')
  return found[1] ~= nil and found[1][2][2] == last_entry
end

-- join: 4 epoch to begin with   5 config   6 epoch   7 seq and   8 entry that the caller saw last
--       9 snapshot to begin with or nothing   10 its signature   11 its time in us   12 epoch that is not to be gone on
--       with or nothing   13 whether the caller can change the log's configuration to its own: 1 or 0
--       14... gateways that own requests in the caller's copy
-- answers {joined, epoch, seq, now_us, accepted, session, leader, gateways, resumes, config, snapshot seq, snapshot,
--         signature}: where config is another, nobody lives who has it, and the caller configures what it has;
--         {config, other}: others live who have another, {empty}: there is no log to go on with, and nothing to begin
--         with was given, or {wait}: the same, and others live who have a copy to begin with
if command == 'join' then
  local resumes, damaged = false, epoch and epoch == ARGV[12]
  if epoch then
    begin(tonumber(state[2]), tonumber(state[3]), tonumber(state[4]))
    local first, kept = first_of_whole(), tonumber(redis.call('HGET', snapshot, 'seq') or '')
    resumes = first ~= nil and ARGV[6] == epoch and in_step(tonumber(ARGV[7]), ARGV[8])
    local readable = first and kept and redis.call('HEXISTS', snapshot, 'data') == 1 and kept <= seq and first <= kept + 1
    if not resumes and not readable then damaged = true end
    if damaged and not resumes and (ARGV[6] == '' or first) then
      redis.call('ZREM', alive, me)
      if redis.call('ZCOUNT', alive, text(now_us), '+inf') > 0 then
        redis.call('DEL', snapshot)  -- the leader leaves another, and cuts the log there
        return {'wait'}
      end
    end
    if not damaged and state[6] ~= ARGV[5] then
      local others = redis.call('ZCOUNT', alive, text(now_us), '+inf')
      if (tonumber(redis.call('ZSCORE', alive, me) or '') or -1) >= now_us then others = others - 1 end
      if others > 0 or ARGV[13] ~= '1' then return {'config', state[6]} end
    end
  end
  if not epoch or damaged then
    if ARGV[9] == '' then return {'empty'} end
    redis.call('DEL', events, meta, alive, snapshot, views)
    local last_us = tonumber(ARGV[11])
    epoch = ARGV[4]
    redis.call('HSET', meta, 'epoch', epoch, 'origin_us', text(wall_us - last_us), 'tick_due_us', '0',
               'config', ARGV[5], 'leader', me, 'views', '0')
    redis.call('HSET', snapshot, 'seq', '0', 'data', ARGV[9], 'mac', ARGV[10])
    begin(wall_us - last_us, last_us, 0)
    resumes = false
  end
  if resumes or epoch == ARGV[4] then
    -- Who owns requests and has no place, since the places were lost, gets one: who is gone is said to be lost when it
    -- runs out, or its requests would stay in the books for ever.
    for i = 14, #ARGV do
      if not redis.call('ZSCORE', alive, ARGV[i]) then redis.call('ZADD', alive, text(now_us + ttl_us), ARGV[i]) end
    end
  end
  local leader = renew()
  close()
  local session = redis.call('HINCRBY', sender, 'session', 1)
  redis.call('EXPIRE', sender, 86400)
  local answer = {'joined', epoch, seq, now_us, tonumber(redis.call('HGET', sender, 'number') or '0'), session, leader,
                  redis.call('ZCARD', alive), resumes and 1 or 0}
  answer[10] = redis.call('HGET', meta, 'config')
  if not resumes then
    local kept = redis.call('HMGET', snapshot, 'seq', 'data', 'mac')
    answer[11], answer[12], answer[13] = tonumber(kept[1]), kept[2], kept[3] or '-'
  end
  return answer
end

-- leave: nothing more
if command == 'leave' then
  if epoch and redis.call('ZSCORE', alive, me) then
    begin(tonumber(state[2]), tonumber(state[3]), tonumber(state[4]))
    lose(me)
    if state[7] == me then redis.call('HDEL', meta, 'leader') end
    close()
  end
  redis.call('DEL', sender)
  return {'left'}
end

if epoch ~= ARGV[4] then return {'stale'} end

-- configure: 4 epoch   5 config   6 number   7 signature   8 entry
if command == 'configure' then
  if state[6] ~= ARGV[5] then
    begin(tonumber(state[2]), tonumber(state[3]), tonumber(state[4]))
    redis.call('HSET', meta, 'config', ARGV[5])
    append(me, ARGV[6], ARGV[7], ARGV[8])
    close()
  end
  return {'configured'}
end

-- save: 4 epoch   5 seq   6 data   7 how many entries before it stay   8 signature
if command == 'save' then
  local number, kept = tonumber(ARGV[5]), tonumber(redis.call('HGET', snapshot, 'seq') or '')
  if (not kept or number > kept) and number <= tonumber(state[4]) then
    -- Where there was none, the entries before it may have gaps.
    local stay = kept and tonumber(ARGV[7]) or 0
    redis.call('HSET', snapshot, 'seq', ARGV[5], 'data', ARGV[6], 'mac', ARGV[8])
    redis.call('XTRIM', events, 'MINID', text(math.max(1, number - stay)) .. '-0')
  end
  return {'saved'}
end

-- append: 4 epoch   5 seq and   6 entry that the caller saw last   7 most entries to return   8 session
--         9 what the caller sees of the replicas   10 count of views that it knows
--         11... for each event: its number, the time in us at which a tick is due or -1, signature, event as JSON
-- answers {ok, seq, now_us, accepted, leader, gateways, early, entries, count of views, views, has snapshot} or {stale};
--         early: a tick is not due yet; views: gateways and what each sees in turn, empty where the caller knows them
begin(tonumber(state[2]), tonumber(state[3]), tonumber(state[4]))
local last_seq = tonumber(ARGV[5])
local sent = redis.call('HMGET', sender, 'number', 'session')
-- Of another session is what waited in a connection that the caller has given up.
if sent[2] ~= ARGV[8] or not redis.call('ZSCORE', alive, me) or not in_step(last_seq, ARGV[6]) then
  return {'stale'}
end
local leader = renew()
local number, tick_due_us, early = tonumber(sent[1] or '0'), tonumber(state[5]), 0
local had, due_before_us = number, tick_due_us
for i = 11, #ARGV, 4 do
  local this, due_us = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
  if this > number then  -- what was sent before and not answered in time may be here already
    number = this
    if due_us < 0 then
      append(me, ARGV[i], ARGV[i + 2], ARGV[i + 3])
    elseif due_us > now_us then
      early = 1
    elseif due_us > tick_due_us then
      tick_due_us = due_us
      append(me, ARGV[i], ARGV[i + 2], ARGV[i + 3])
    end
  end
end
if number > had then
  redis.call('HSET', sender, 'number', text(number))
  redis.call('EXPIRE', sender, 86400)
end
if tick_due_us > due_before_us then redis.call('HSET', meta, 'tick_due_us', text(tick_due_us)) end
if redis.call('HGET', views, me) ~= ARGV[9] then
  redis.call('HSET', views, me, ARGV[9])
  redis.call('HINCRBY', meta, 'views', 1)
end
close()
local entries = redis.call('XRANGE', events, text(last_seq + 1) .. '-0', '+', 'COUNT', ARGV[7])
local texts = {}
for i, entry in ipairs(entries) do texts[i] = entry[2][2] end
local count, seen = redis.call('HGET', meta, 'views') or '0', {}
if count ~= ARGV[10] then seen = redis.call('HGETALL', views) end
return {'ok', seq, now_us, number, leader, redis.call('ZCARD', alive), early, texts, count, seen,
        redis.call('HEXISTS', snapshot, 'data')}
