-- The verbs of a RedisStore, for the sessions of one partition.
--
-- A call runs some verbs in order; each does all it does or nothing, and one that is refused, or
-- fails, stops no other. All keys begin with the same hash tag, that of KEYS[1], and so live in one
-- slot:
--
--   :meta         hash: the server that was here last, generation, clock, sums, number of the last
--                 change, and how many entries each :due has
--   :s:<id>       hash: a session, its cursor and what it owes; the fields stand at new_session()
--   :l:<id>       stream: its log; the id of an entry is <number>-0
--   :ids          sorted set: ids of all sessions, by name
--   :ch           sorted set: ids of sessions by the number of their last change; "" stands for
--                 those that are gone
--   :chk          sorted set: ids of sessions by when time asks for something
--   :due:<method> sorted set: what is owed by when it is due
--   :d:<id>       hash: dead letters; :r:<id> their records; :o:<id> sorted set of their order
--   :k:<id>       hash: idempotency keys; :x:<id> sorted set of when they are forgotten
--   :a:<id>       list: attempts
--   :n:<id>       stream: what becomes a log within one call
--   :ev :es :ez   endpoints: version, state, when it was saved
--
-- Redis may evict any key, and an operator may delete one: what can be made from the others is, and
-- what can't counts as lost and is told.
--
-- ARGV: the time ("" asks the server, "-" stands for one that does not matter), the number of
-- partitions, then for each verb its name, the number of its arguments, and these. Times are
-- seconds since 1970; "" is none.

-- Redis 6 does it only if it is told.
if redis.replicate_commands then redis.replicate_commands() end

local call, format = redis.call, string.format
local T = string.sub(KEYS[1], 1, -6)
local META = KEYS[1]

-- How much of something is looked at in one go, where there may be much of it.
local SOME = 1000
local KEY_KEPT, MOST_KEYS = 86400, 100000

local function text(x)
  -- Lua 5.1 writes 14 digits; a time in microseconds has 16.
  if x == math.huge then return 'inf' end
  if x == -math.huge then return '-inf' end
  if x == math.floor(x) and math.abs(x) < 9007199254740992 then return format('%.0f', x) end
  return format('%.17g', x)
end

local function flag(x) return x and '1' or '0' end

local function pairs_of(flat)
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end

-- Who serves, and what time it is.

local M = pairs_of(call('HGETALL', META))
-- By another number a session would be looked for elsewhere, and what it owes be sent for ever.
if M.parts and M.parts ~= ARGV[2] then
  return redis.error_reply('ERR the sessions are in ' .. M.parts .. ' partitions, not ' .. ARGV[2])
end
local meta_changed = {}
-- What it was before the verb that runs: one that fails has changed nothing.
local meta_before = {}
-- Takes back what else it wrote.
local take_back

local function set_meta(name, value)
  if meta_before[name] == nil then meta_before[name] = M[name] or false end
  M[name] = value
  meta_changed[name] = true
end

local function add_meta(name, amount)
  if amount ~= 0 then set_meta(name, text(tonumber(M[name] or '0') + amount)) end
end

local function clock()
  local t = call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1e6
end

local wall
if ARGV[1] == '' then
  wall = clock()
elseif ARGV[1] == '-' then
  wall = tonumber(M.latest or '0') - tonumber(M.back or '0')
else
  wall = tonumber(ARGV[1])
end

-- Another server, or one that was started again, may not have all that was acknowledged: what it
-- has belongs to another generation, and each log gets a new epoch. One whose meta is lost, too.
-- A server that was a replica for a while, and has what another one had, is known by the id of its
-- history only.
local function told_by(section, field)
  local info = call('INFO', section)
  local _, before_id = string.find(info, field, 1, true)
  return before_id and string.match(info, '^%x+', before_id + 1) or ''
end

local server = told_by('server', 'run_id:') .. told_by('replication', 'master_replid:')
local is_meta_lost = M.server == nil
if M.server ~= server then
  -- The true time: one that is set may have been there before.
  local seed = (M.server or '') .. server .. text(clock()) .. (M.gen or '')
  M.server, M.gen = server, string.sub(redis.sha1hex(seed), 1, 16)
  -- At once: where it can't be written, nothing else can.
  call('HSET', META, 'server', M.server, 'gen', M.gen, 'parts', ARGV[2])
end

-- Time never goes back: where the clock was turned back, it goes on.
local now = wall + tonumber(M.back or '0')
local latest = tonumber(M.latest or '-inf') or -math.huge
if now < latest then
  set_meta('back', text(tonumber(M.back or '0') + latest - now))
  now = latest
end
local NOW, MICROS = text(now), math.floor(wall * 1e6)

-- Telling who waits, once all is done: a channel for each session, and one for what falls due.

local told = {}
-- Those of them that are there to be noted as changed.
local rung = {}
local tells_due = false

local function ring(S)
  rung[S.id] = true
  told[S.id] = true
end

local function ring_due() tells_due = true end

-- Where nothing else of a session changes: for those whom no message reaches.
local function note_due()
  tells_due = true
  rung[''] = true
end

-- How many entries a set of what is due has is counted: that it is lost shows by that.

local function add_due(method, entry, at)
  add_meta('due:' .. method, call('ZADD', T .. ':due:' .. method, at, entry))
end

-- Sessions.

local cache = {}
-- Those with something to be written.
local dirty = {}

local function num(S, name)
  return tonumber(S.f[name])
end

local function put(S, name, value)
  if type(value) == 'number' then value = text(value) end
  S.f[name] = value
  S.changed[name] = true
  dirty[S] = true
end

local function key_of(kind, S) return T .. ':' .. kind .. ':' .. S.id end

local function member(S, letter) return #S.id .. ':' .. S.id .. (letter or '') end

local function count(S) return num(S, 'to') - num(S, 'fi') + 1 end

local function save(S)
  local flat = {}
  for name in pairs(S.changed) do
    flat[#flat + 1] = name
    flat[#flat + 1] = S.f[name]
  end
  if #flat > 0 then call('HSET', T .. ':s:' .. S.id, unpack(flat)) end
  S.changed = {}
  dirty[S] = nil
end

-- Set where a session turns out to be lost, with what the sums were made of.
local is_lost = false

-- What is needed now and then is made when it is asked for, and adds its verbs to the others: to
-- make a hundred functions takes the time of some appends.

local verbs = {}
local make_rest, made

local function rest()
  if not made then made = make_rest() end
  return made
end

-- What most verbs look at is loaded at once; who looks at any other field loads them all.

local ALL = {
  __index = function(f, name)
    setmetatable(f, nil)
    for field, value in pairs(pairs_of(call('HGETALL', T .. ':s:' .. f.id))) do
      -- What was put meanwhile is newer.
      if f[field] == nil then f[field] = value end
    end
    return f[name]
  end,
}

local function load(id)
  local S = cache[id]
  if S == nil then
    local row = call(
      'HMGET', T .. ':s:' .. id,
      'ge', 'st', 'ep', 'fi', 'to', 'la', 'n', 'sz', 'pu', 'rn', 'rb', 'du', 'me'
    )
    if not row[1] then
      cache[id] = false
      rest().lose(id)
      return nil
    end
    local f = {
      id = id, ge = row[1], st = row[2], ep = row[3], fi = row[4], to = row[5], la = row[6],
      n = row[7], sz = row[8], pu = row[9], rn = row[10], rb = row[11], du = row[12], me = row[13],
    }
    S = { id = id, f = setmetatable(f, ALL), changed = {} }
    cache[id] = S
    if f.ge ~= M.gen then rest().renew_epoch(S) end
    if f.st ~= 'deleted' and count(S) > 0 and call('EXISTS', key_of('l', S)) == 0 then
      rest().lose_log(S)
    end
  end
  return S or nil
end

local UNKNOWN, DELETED, ENDED = { 'unknown' }, { 'deleted' }, { 'ended' }

local function get(id)
  local S = load(id)
  if not S then return nil, UNKNOWN end
  if S.f.st == 'deleted' then return nil, DELETED end
  return S
end

local SHOWN = {
  'th', 'ow', 'cf', 'me', 'pu', 'un', 'st', 'ca', 'ep',
  'fi', 'to', 'cu', 'n', 'se', 'fa', 'ex', 're',
}

local function shown(S)
  local row = { S.id }
  for i, name in ipairs(SHOWN) do row[i + 1] = S.f[name] end
  return row
end

local function trim_log(S)
  if not S.is_trimmed then return end
  S.is_trimmed = nil
  -- What lies before the first number is not shown, so about is good enough; and far cheaper.
  if count(S) == 0 then
    call('UNLINK', key_of('l', S))
  else
    -- However many there are: by itself it would stop after some thousands.
    call('XTRIM', key_of('l', S), 'MINID', '~', S.f.fi .. '-0', 'LIMIT', 0)
  end
end

local function is_over(f)
  local kept = tonumber(f.to) - tonumber(f.fi) + 1
  if kept <= 1 then return false end
  if f.rn ~= '' and kept > tonumber(f.rn) then return true end
  return f.rb ~= '' and tonumber(f.sz) > tonumber(f.rb)
end

local function put_due(S, at)
  put(S, 'du', at)
  add_due(S.f.me, member(S), text(at))
end

local function owe(S, at)
  if S.f.du == '' then put_due(S, at) end
end

-- The verbs that are asked for most.

function verbs.count() return { M.sessions or '0' } end

-- Writes, for that is what may not be possible.
function verbs.health()
  call('HSET', META, 'server', M.server)
  return { 'ok' }
end

function verbs.get(id)
  local S, err = get(id)
  if not S then return err end
  return { 'ok', shown(S) }
end

function verbs.touch(id, upto)
  local S = load(id)
  if S and S.f.st ~= 'deleted' then
    put(S, 'ta', now)
    if upto ~= '' and S.f.pu ~= '1' then
      rest().settle(S, math.min(tonumber(upto), num(S, 'to')))
    end
  end
  return { 'ok' }
end

-- Without a key the last two are left out. Of what is new one text tells: there are many of these.
function verbs.append(id, event_type, body, owed, key, digest)
  local S, err = get(id)
  if not S then return err end
  local f = S.f
  if key then
    rest().forget_keys(S)
    local packed = rest().known_by(S, key)
    if packed then
      local seq, at, known_type, known_owed, ordinal, known_digest = unpack(cmsgpack.unpack(packed))
      if known_type ~= event_type or known_digest ~= digest then return { 'other' } end
      return { 'again', f.ep, seq, at, known_owed, ordinal }
    end
  end
  if f.st ~= 'active' then return ENDED end
  if key and call('HLEN', key_of('k', S)) >= MOST_KEYS then return { 'keys', MOST_KEYS } end
  local at = tonumber(f.la) + 1
  if at < MICROS then at = MICROS end
  f.la = format('%.0f', at)
  -- Without a call: these have no more than 14 digits.
  f.to = tonumber(f.to) + 1 .. ''
  f.sz = tonumber(f.sz) + #body .. ''
  f.ta = NOW
  if owed == '1' then f.n = tonumber(f.n) + 1 .. '' end
  local log, number = key_of('l', S), f.to .. '-0'
  local fields = { 't', event_type, 'b', body, 'o', owed, 'n', f.n, 'a', f.la }
  local added = redis.pcall('XADD', log, number, unpack(fields))
  if type(added) == 'table' then
    if not string.find(added.err, 'equal or smaller', 1, true) then error(added) end
    rest().drop_ghosts(S)
    call('XADD', log, number, unpack(fields))
  end
  if key then
    local known = { f.to, f.la, event_type, owed, f.n, digest }
    -- Whoever tries again is not to be told that an event was kept which was not.
    take_back = function()
      call('HDEL', key_of('k', S), key)
      call('ZREM', key_of('x', S), key)
    end
    call('HSET', key_of('k', S), key, cmsgpack.pack(known))
    call('ZADD', key_of('x', S), text(now + KEY_KEPT), key)
  end
  -- At once, and together: the most frequent of all changes. From here on it is kept.
  call(
    'HSET', T .. ':s:' .. id, 'la', f.la, 'to', f.to, 'sz', f.sz, 'ta', NOW, 'n', f.n
  )
  take_back = nil
  if owed == '1' then
    add_meta('sent', 1)
    if f.pu == '1' then
      owe(S, now)
      ring_due()
    end
  end
  if is_over(f) then rest().shed(S) end
  if key or tonumber(f.to) == tonumber(f.fi) + 1 then rest().schedule(S) end
  ring(S)
  return { 'ok', f.ep .. ' ' .. f.to .. ' ' .. f.la .. ' ' .. f.n }
end

-- Bytes of the events that were answered.
local answered = 0

local function page(S, entries)
  local records = {}
  for i, entry in ipairs(entries) do
    local fields = pairs_of(entry[2])
    answered = answered + #fields.b
    records[i] = {
      string.match(entry[1], '^%d+'), fields.a, fields.t, fields.b, fields.o, fields.n,
    }
  end
  return { 'ok', S.f.ep, S.f.fi, S.f.to, S.f.st, records }
end

function verbs.read(id, epoch, seq, limit, owed)
  local S, err = get(id)
  if not S then return err end
  local begin = num(S, 'fi')
  if epoch == S.f.ep and tonumber(seq) <= num(S, 'to') then
    begin = math.max(tonumber(seq) + 1, begin)
  end
  limit = tonumber(limit)
  -- For XRANGE none at all would be nil.
  if limit < 1 then return page(S, {}) end
  local key = key_of('l', S)
  if owed ~= '1' then
    return page(S, call('XRANGE', key, text(begin) .. '-0', S.f.to .. '-0', 'COUNT', limit))
  end
  local found = {}
  while #found < limit do
    local entries = call('XRANGE', key, text(begin) .. '-0', S.f.to .. '-0', 'COUNT', limit)
    for _, entry in ipairs(entries) do
      if pairs_of(entry[2]).o == '1' and #found < limit then found[#found + 1] = entry end
    end
    if #entries < limit then break end
    begin = begin + #entries
  end
  return page(S, found)
end

function verbs.tail(id, limit)
  local S, err = get(id)
  if not S then return err end
  local begin = math.max(num(S, 'fi'), num(S, 'to') - tonumber(limit) + 1)
  return page(S, call('XRANGE', key_of('l', S), text(begin) .. '-0', S.f.to .. '-0'))
end

-- What changed after a number, for whom no wake told; with the generation, the newest number, and
-- whether that is all.
function verbs.changes(gen, after, limit)
  local newest = M.ch or '0'
  local unknown = { 'ok', M.gen, newest, '0', {} }
  if gen ~= M.gen or tonumber(after) > tonumber(newest) then return unknown end
  if after == newest then return { 'ok', M.gen, newest, '1', {} } end
  local last = call('ZRANGE', T .. ':ch', -1, -1, 'WITHSCORES')[2]
  if not last or tonumber(last) ~= tonumber(newest) then return unknown end
  local ids = call('ZRANGEBYSCORE', T .. ':ch', '(' .. after, '+inf', 'LIMIT', 0, tonumber(limit))
  return { 'ok', M.gen, newest, '1', ids }
end

make_rest = function()
  local LETTER_KEPT, MOST_ATTEMPTS = 604800, 100

  local KINDS = { 's', 'l', 'd', 'r', 'o', 'k', 'x', 'a' }

  local function remove_due(method, entry)
    add_meta('due:' .. method, -call('ZREM', T .. ':due:' .. method, entry))
  end

  local function queued(S) return num(S, 'n') - num(S, 'se') end

  local function new_epoch(S)
    return string.sub(redis.sha1hex(S.f.ep .. M.gen .. S.f.to), 1, 16)
  end

  -- Nobody who held a lease before may settle anything now, nor a number of his come again: not
  -- even where two servers, of which neither knew of the other, each began a generation.
  local function raised(fence)
    return fence + (1 + tonumber(string.sub(M.gen, 1, 5), 16)) * 1000000
  end

  local function refuse(S)
    put(S, 'fn', raised(num(S, 'fn')))
    put(S, 'ls', '0')
    put(S, 'at', '0')
    put(S, 'bo', '')
  end

  local function letters(S) return call('ZCARD', key_of('o', S)) end

  local function remove_letter(S, id)
    call('HDEL', key_of('d', S), id)
    call('HDEL', key_of('r', S), id)
    call('ZREM', key_of('o', S), id)
    remove_due(S.f.me, member(S, id))
  end

  -- A letter, unless a part of it was lost.
  local function load_letter(S, id)
    local packed = call('HGET', key_of('d', S), id)
    if not packed or call('HEXISTS', key_of('r', S), id) == 0 then
      if call('ZSCORE', key_of('o', S), id) then remove_letter(S, id) end
      return nil
    end
    local L = cmsgpack.unpack(packed)
    L.id = id
    return L
  end

  local function save_letter(S, L) call('HSET', key_of('d', S), L.id, cmsgpack.pack(L)) end

  local function records_of(S, L)
    local packed = call('HGET', key_of('r', S), L.id)
    answered = answered + #packed
    return cmsgpack.unpack(packed)
  end

  -- The oldest letter.
  local function first_letter(S)
    while true do
      local id = call('ZRANGE', key_of('o', S), 0, 0)[1]
      local L = id and load_letter(S, id)
      if L or not id then return L or nil end
    end
  end

  local function let_letters_go(S)
    for _, id in ipairs(call('ZRANGE', key_of('o', S), 0, -1)) do
      local L = load_letter(S, id)
      if L then
        L.fence = raised(L.fence)
        L.leased = false
        save_letter(S, L)
      end
    end
  end

  local function renew_epoch(S)
    put(S, 'ep', new_epoch(S))
    put(S, 'ge', M.gen)
    refuse(S)
    let_letters_go(S)
    if S.f.pu == '1' and S.f.st ~= 'deleted' and queued(S) > 0 then
      put(S, 'du', text(now))
      add_due(S.f.me, member(S), text(now))
      ring_due()
    elseif S.f.du ~= '' then
      -- The end of a lease that nobody holds any more: what is owed next need not wait for it.
      put(S, 'du', '')
      remove_due(S.f.me, member(S))
    end
    ring(S)
  end

  local function keys_of(S)
    local keys = {}
    for i, kind in ipairs(KINDS) do keys[i] = key_of(kind, S) end
    return keys
  end

  local function forget(S)
    call('UNLINK', unpack(keys_of(S)))
    for _, set in ipairs({ ':ids', ':ch', ':chk' }) do call('ZREM', T .. set, S.id) end
    rung[S.id] = nil
    -- The newest change has its entry, always.
    add_meta('ch', 1)
    call('ZADD', T .. ':ch', M.ch, '')
    cache[S.id] = false
    dirty[S] = nil
  end

  -- A session that is not there: if it was lost alone, nothing shall be left of it.
  local function lose(id)
    if not call('ZSCORE', T .. ':ids', id) then return end
    forget({ id = id })
    is_lost = true
    -- Who waits for its next event would wait long.
    told[id] = true
  end

  -- A log that was lost alone: what was in it is gone, and nothing is to be taken for it.
  local function lose_log(S)
    local lost = queued(S)
    put(S, 'ex', num(S, 'ex') + lost)
    add_meta('expired', lost)
    add_meta('settled', lost)
    put(S, 'se', S.f.n)
    put(S, 'cu', S.f.to)
    put(S, 'fi', num(S, 'to') + 1)
    put(S, 'sz', '0')
    renew_epoch(S)
  end

  local LOST = { 'lost' }

  local function get_with_letters(id)
    local S = load(id)
    if S and letters(S) > 0 then return S end
    return get(id)
  end

  -- Records.

  local function record_of(entry)
    local fields = pairs_of(entry[2])
    return {
      tonumber(string.match(entry[1], '^%d+')),
      fields.a,
      fields.t,
      fields.b,
      fields.o,
      tonumber(fields.n),
    }
  end

  -- What an append left that failed half way: nobody was told of it, nor read it. A stream takes no
  -- number twice, so what is whole goes into another one.
  local function drop_ghosts(S)
    local key, new = key_of('l', S), key_of('n', S)
    local from, upto = S.f.fi .. '-0', text(num(S, 'to') - 1) .. '-0'
    call('UNLINK', new)
    for _, entry in ipairs(call('XRANGE', key, from, upto)) do
      call('XADD', new, entry[1], unpack(entry[2]))
    end
    if call('EXISTS', new) == 1 then
      call('RENAME', new, key)
    else
      call('UNLINK', key)
    end
  end

  local function record_at(S, seq)
    local found = call('XRANGE', key_of('l', S), text(seq) .. '-0', text(seq) .. '-0')
    return found[1] and record_of(found[1])
  end

  local function oldest(S)
    if not S.oldest then S.oldest = record_at(S, num(S, 'fi')) end
    return S.oldest
  end

  local function drop_oldest(S, record)
    put(S, 'sz', num(S, 'sz') - #record[4])
    put(S, 'fi', num(S, 'fi') + 1)
    S.oldest = nil
    S.is_trimmed = true
  end

  local function is_old(S)
    if count(S) <= 1 or S.f.ra == '' then return false end
    return tonumber(oldest(S)[2]) <= (wall - num(S, 'ra')) * 1e6
  end

  local function must_deliver(S)
    if S.f.pu ~= '1' then return false end
    local record = oldest(S)
    return record[5] == '1' and record[1] > num(S, 'cu')
  end

  local function must_stay(S) return S.f.pu == '1' and queued(S) > 0 end

  local function is_leaving(S)
    if S.f.st == 'active' then
      return S.f.ttl ~= '' and num(S, 'ta') + num(S, 'ttl') <= now
    end
    return S.f.lv ~= '' and num(S, 'lv') <= now
  end

  -- What is due when.

  local function withdraw(S)
    put(S, 'fn', num(S, 'fn') + 1)
    put(S, 'ls', '0')
    put(S, 'at', '0')
    put(S, 'bo', '')
    put(S, 'du', '')
    remove_due(S.f.me, member(S))
  end

  local function put_letter_due(S, L, at)
    L.due_at = text(at)
    add_due(S.f.me, member(S, L.id), text(at))
  end

  local function next_check(S)
    if S.f.st == 'deleted' then
      local first = first_letter(S)
      local at = S.f.lv == '' and math.huge or num(S, 'lv')
      if first then at = math.max(at, tonumber(first.since) + LETTER_KEPT) end
      return at
    end
    local at = S.f.lv == '' and math.huge or num(S, 'lv')
    if S.f.st == 'active' and S.f.ttl ~= '' then at = num(S, 'ta') + num(S, 'ttl') end
    local key = call('ZRANGE', key_of('x', S), 0, 0, 'WITHSCORES')
    if key[2] then at = math.min(at, tonumber(key[2])) end
    if num(S, 'fi') < num(S, 'to') and S.f.ra ~= '' then
      at = math.min(at, tonumber(oldest(S)[2]) / 1e6 + num(S, 'ra'))
    end
    return at
  end

  local function schedule(S, has_checked)
    local at = next_check(S)
    -- What could not be done now: once nothing is owed any more it is scheduled anew.
    if has_checked then at = math.max(at, now + (must_stay(S) and 60 or 1)) end
    call('ZADD', T .. ':chk', text(at), S.id)
  end

  local function forget_keys(S)
    local old = call('ZRANGEBYSCORE', key_of('x', S), '-inf', text(now), 'LIMIT', 0, SOME)
    for _, key in ipairs(old) do
      call('HDEL', key_of('k', S), key)
      call('ZREM', key_of('x', S), key)
    end
  end

  -- What an idempotency key stands for, while it is remembered.
  local function known_by(S, key)
    local packed = call('HGET', key_of('k', S), key)
    if not packed then return nil end
    local ends = call('ZSCORE', key_of('x', S), key)
    if ends and tonumber(ends) <= now then
      call('HDEL', key_of('k', S), key)
      call('ZREM', key_of('x', S), key)
      return nil
    end
    if not ends then
      -- When they end was lost: none is forgotten early.
      for _, each in ipairs(call('HKEYS', key_of('k', S))) do
        call('ZADD', key_of('x', S), 'NX', text(now + KEY_KEPT), each)
      end
    end
    return packed
  end

  -- The cursor, dead letters, dropping.

  local function settle(S, upto)
    if upto <= num(S, 'cu') then return end
    local ordinal = num(S, 'se')
    if num(S, 'fi') <= upto and upto <= num(S, 'to') then ordinal = record_at(S, upto)[6] end
    add_meta('settled', ordinal - num(S, 'se'))
    put(S, 'se', ordinal)
    put(S, 'cu', upto)
  end

  local function bury(S, records, reason, attempts, letter_id)
    if #records == 0 then return end
    local id = letter_id or (S.id .. '_' .. S.f.ep .. '_' .. text(records[1][1]))
    put(S, 'lo', num(S, 'lo') + 1)
    local L = {
      id = id, method = S.f.me, epoch = S.f.ep, reason = reason, attempts = attempts,
      at = text(wall), since = text(now), is_due = false, count = #records,
      first = records[1][1], last = records[#records][1],
      fence = 0, leased = false, tries = 0, due_at = '',
    }
    save_letter(S, L)
    call('HSET', key_of('r', S), id, cmsgpack.pack(records))
    call('ZADD', key_of('o', S), S.f.lo, id)
    while letters(S) > num(S, 'mp') do
      remove_letter(S, call('ZRANGE', key_of('o', S), 0, 0)[1])
    end
    put(S, 'fa', num(S, 'fa') + #records)
    add_meta('failed', #records)
    schedule(S)
  end

  local function give_up(S)
    local record = oldest(S)
    bury(S, { record }, 'more events were waiting than max_pending', 0)
    settle(S, record[1])
    local was_leased, due_at = S.f.ls == '1', S.f.du
    -- Who holds the lease may be sending this very record: what he says is too late.
    withdraw(S)
    -- A delay that runs goes on: a dead endpoint is not tried at every append.
    owe(S, (was_leased or due_at == '') and now or tonumber(due_at))
  end

  local function drop(S)
    local record = oldest(S)
    if record[1] > num(S, 'cu') then
      local expired = record[6] - num(S, 'se')
      put(S, 'ex', num(S, 'ex') + expired)
      add_meta('expired', expired)
      settle(S, record[1])
    end
    drop_oldest(S, record)
  end

  local function shed(S)
    while is_over(S.f) or is_old(S) do
      if must_deliver(S) then
        if queued(S) <= num(S, 'mp') then break end
        give_up(S)
      end
      drop(S)
    end
    trim_log(S)
  end

  local function clear(S)
    local lost = queued(S)
    put(S, 'ex', num(S, 'ex') + lost)
    add_meta('expired', lost)
    add_meta('settled', lost)
    add_meta('sessions', -1)
    if S.f.st == 'active' then add_meta('active', -1) end
    withdraw(S)
    put(S, 'st', 'deleted')
    put(S, 'se', S.f.n)
    put(S, 'cu', S.f.to)
    put(S, 'fi', num(S, 'to') + 1)
    put(S, 'sz', '0')
    put(S, 'lv', '-1')
    S.oldest = nil
    call('UNLINK', key_of('l', S), key_of('k', S), key_of('x', S))
    if letters(S) == 0 then call('UNLINK', key_of('a', S)) end
  end

  local function forget_letters(S)
    if S.f.st ~= 'deleted' then return end
    while true do
      local L = first_letter(S)
      if not L or tonumber(L.since) + LETTER_KEPT > now then return end
      remove_letter(S, L.id)
    end
  end

  -- Puts back what is due, where the set of that was lost.
  local function restore_due(S)
    if S.f.du ~= '' then add_due(S.f.me, member(S), S.f.du) end
    for _, id in ipairs(call('ZRANGE', key_of('o', S), 0, -1)) do
      local L = load_letter(S, id)
      if L and L.due_at ~= '' then add_due(S.f.me, member(S, id), L.due_at) end
    end
  end

  -- Does what time asks for; true if the session can't be read from now on.
  local function check(S)
    forget_letters(S)
    local was_deleted = S.f.st == 'deleted'
    if was_deleted then
      if letters(S) == 0 and is_leaving(S) then
        forget(S)
        return false
      end
    elseif is_leaving(S) and not must_stay(S) then
      clear(S)
      ring(S)
      if letters(S) == 0 then
        forget(S)
        return true
      end
    else
      forget_keys(S)
      shed(S)
    end
    schedule(S, true)
    return not was_deleted and S.f.st == 'deleted'
  end

  -- Claims.

  local function as_claim(S, L)
    if L then
      return {
        S.id, S.f.me, S.f.cf, L.epoch, text(L.first - 1), text(L.tries), text(L.last),
        text(L.fence),
        L.id, L.reason, text(L.attempts), L.at, flag(L.is_due), L.method,
        records_of(S, L),
      }
    end
    return { S.id, S.f.me, S.f.cf, S.f.ep, S.f.cu, S.f.at, S.f.bo, S.f.fn }
  end

  local function held(id, letter_id, fence)
    local S = load(id)
    if not S then return nil end
    if letter_id == '' then
      if S.f.ls ~= '1' or S.f.fn ~= fence then return nil end
      return S
    end
    local L = load_letter(S, letter_id)
    if not L or not L.leased or text(L.fence) ~= fence then return nil end
    return S, L
  end

  local function note(S, number, attempt)
    if attempt == '' then return end
    call('RPUSH', key_of('a', S), attempt)
    call('LTRIM', key_of('a', S), -MOST_ATTEMPTS, -1)
    if tonumber(number) > 1 then
      put(S, 're', num(S, 're') + 1)
      add_meta('retries', 1)
    end
  end

  local function go_on(S, lease)
    put(S, 'at', '0')
    put(S, 'bo', '')
    -- What was kept to be delivered only.
    if is_over(S.f) then shed(S) end
    if queued(S) > 0 and lease ~= '' then
      put_due(S, now + tonumber(lease))
      return as_claim(S)
    end
    put(S, 'ls', '0')
    put(S, 'du', '')
    remove_due(S.f.me, member(S))
    if queued(S) > 0 then
      owe(S, now)
      note_due()
    else
      schedule(S)
    end
    return {}
  end

  -- The other verbs.

  function verbs.create(id, th, ow, cf, me, pu, un, ttl, rn, rb, ra, mp, ep)
    if load(id) then return { 'taken' } end
    -- Where the session alone was lost, something may be left of it.
    if call('EXISTS', unpack(keys_of({ id = id }))) > 0 then forget({ id = id }) end
    local S = {
      id = id,
      changed = {},
      f = {
        th = th, ow = ow, cf = cf, me = me, pu = pu, un = un, ttl = ttl,
        rn = rn, rb = rb, ra = ra, mp = mp,  -- retention by number, bytes, age; most that is owed
        ep = ep, ge = M.gen,                     -- epoch, generation
        st = 'active', ca = text(wall), ta = text(now), lv = '',
        fi = '1', to = '0', la = '0', sz = '0',  -- first, top, time of the newest record, bytes
        n = '0', cu = '0', se = '0',             -- owed records, cursor, ordinal there
        fa = '0', ex = '0', re = '0', lo = '0',  -- failed, expired, retries, letters ever
        du = '', fn = '0', ls = '0', at = '0', bo = '',  -- due at, fence, leased, attempts, bound
      },
    }
    for name in pairs(S.f) do S.changed[name] = true end
    dirty[S] = true
    cache[id] = S
    call('ZADD', T .. ':ids', 0, id)
    add_meta('sessions', 1)
    add_meta('active', 1)
    schedule(S)
    ring(S)
    return { 'ok', shown(S) }
  end

  -- Every session is in :chk, too: that some were lost shows by that.
  local function restore_ids()
    local ids, all = call('ZCARD', T .. ':ids'), call('ZCARD', T .. ':chk')
    -- So is every one in :ch, but for "".
    local noted = call('ZCARD', T .. ':ch') - (call('ZSCORE', T .. ':ch', '') and 1 or 0)
    if ids < math.max(all, noted) then
      call('ZUNIONSTORE', T .. ':ids', 3, T .. ':ids', T .. ':ch', T .. ':chk', 'WEIGHTS', 0, 0, 0)
      call('ZREM', T .. ':ids', '')
    end
  end

  -- Looks at some sessions; answers with the id to go on after, too, "" at the end.
  function verbs.list(after, limit, state, owner)
    local found = {}
    limit = tonumber(limit)
    restore_ids()
    local from = after == '' and '-' or '(' .. after
    local ids = call('ZRANGEBYLEX', T .. ':ids', from, '+', 'LIMIT', 0, SOME)
    for _, id in ipairs(ids) do
      local S = load(id)
      if S then
        local fits = state == '' and S.f.st ~= 'deleted' or S.f.st == state
        if fits and (owner == '' or S.f.ow == owner) then found[#found + 1] = shown(S) end
        if #found == limit then return { 'ok', found, id } end
      end
    end
    return { 'ok', found, #ids < SOME and '' or ids[#ids] }
  end

  function verbs.update(id, known, cf, un)
    local S, err = get(id)
    if not S then return err end
    if S.f.st ~= 'active' then return ENDED end
    if S.f.cf == known then
      put(S, 'cf', cf)
      put(S, 'un', un)
    end
    return { 'ok', shown(S) }
  end

  function verbs.finish(id, linger)
    local S, err = get(id)
    if not S then return err end
    if S.f.st == 'active' then
      put(S, 'st', 'ended')
      add_meta('active', -1)
      put(S, 'lv', now + tonumber(linger))
      schedule(S)
    end
    ring(S)
    return { 'ok', shown(S) }
  end

  function verbs.delete(id, linger)
    local S, err = get(id)
    if not S then return err end
    for _, letter in ipairs(call('ZRANGE', key_of('o', S), 0, -1)) do remove_letter(S, letter) end
    clear(S)
    put(S, 'lv', now + tonumber(linger))
    schedule(S)
    ring(S)
    return { 'ok' }
  end

  function verbs.trim(id, before)
    local S, err = get(id)
    if not S then return err end
    local dropped = 0
    while num(S, 'fi') < math.min(tonumber(before), num(S, 'to') + 1) and not must_deliver(S) do
      drop(S)
      dropped = dropped + 1
    end
    trim_log(S)
    return { 'ok', dropped }
  end

  local function restore_all_due(method)
    restore_ids()
    set_meta('due:' .. method, text(call('ZCARD', T .. ':due:' .. method)))
    for _, id in ipairs(call('ZRANGE', T .. ':ids', 0, -1)) do
      if call('HGET', T .. ':s:' .. id, 'me') == method then
        local S = load(id)
        if S then restore_due(S) end
      end
    end
  end

  -- Has every session be looked at by the next sweeps.
  local function check_all()
    call('ZUNIONSTORE', T .. ':chk', 1, T .. ':ids', 'WEIGHTS', 0)
  end

  function verbs.sweep(limit)
    local gone, checked = {}, 0
    limit = tonumber(limit)
    restore_ids()
    if call('ZCARD', T .. ':chk') < call('ZCARD', T .. ':ids') then check_all() end
    local due = call('ZRANGEBYSCORE', T .. ':chk', '-inf', NOW, 'WITHSCORES', 'LIMIT', 0, limit)
    for i = 1, #due, 2 do
      local id = due[i]
      checked = checked + 1
      local S = load(id)
      if S then
        if due[i + 1] == '0' then restore_due(S) end  -- all are, see check_all()
        if check(S) then gone[#gone + 1] = id end
        if cache[id] then save(S) end
      elseif call('ZSCORE', T .. ':chk', id) then
        forget({ id = id })
      end
    end
    local old = call('ZRANGEBYSCORE', T .. ':ez', '-inf', text(now - LETTER_KEPT), 'LIMIT', 0, SOME)
    for _, name in ipairs(old) do
      call('HDEL', T .. ':ev', name)
      call('HDEL', T .. ':es', name)
      call('ZREM', T .. ':ez', name)
    end
    local more = call('ZCOUNT', T .. ':chk', '-inf', text(now)) > 0
    return { 'ok', gone, checked, flag(more) }
  end

  -- Arguments: limit, lease, methods.
  function verbs.claim(arguments)
    local claims, nearest = {}, math.huge
    local limit, lease = tonumber(arguments[1]), tonumber(arguments[2])
    for i = 3, #arguments do
      local method = arguments[i]
      local key = T .. ':due:' .. method
      -- Where it was lost, others may have been put there since.
      if call('ZCARD', key) ~= tonumber(M['due:' .. method] or '0') then
        restore_all_due(method)
      end
      while #claims < limit do
        local entry = call('ZRANGEBYSCORE', key, '-inf', text(now), 'LIMIT', 0, 1)[1]
        if not entry then break end
        local size, rest = string.match(entry, '^(%d+):(.*)$')
        local id, letter_id = string.sub(rest, 1, size), string.sub(rest, size + 1)
        local S = load(id)
        local L = S and letter_id ~= '' and load_letter(S, letter_id)
        if not S or (letter_id ~= '' and not L) or (letter_id == '' and S.f.du == '') then
          remove_due(method, entry)
        elseif L then
          L.fence = L.fence + 1
          L.leased = true
          put_letter_due(S, L, now + lease)
          save_letter(S, L)
          claims[#claims + 1] = as_claim(S, L)
        else
          put(S, 'fn', num(S, 'fn') + 1)
          put(S, 'ls', '1')
          put_due(S, now + lease)
          claims[#claims + 1] = as_claim(S)
          save(S)
        end
      end
      local first = call('ZRANGE', key, 0, 0, 'WITHSCORES')
      if first[2] then nearest = math.min(nearest, tonumber(first[2])) end
    end
    return { 'ok', claims, nearest == math.huge and '' or text(math.max(nearest - now, 0)) }
  end

  function verbs.renew(id, letter_id, fence, lease, bound)
    local S, L = held(id, letter_id, fence)
    if not S then return LOST end
    local at = now + tonumber(lease)
    if L then
      put_letter_due(S, L, at)
      save_letter(S, L)
      return { 'ok', as_claim(S, L) }
    end
    if bound ~= '' then put(S, 'bo', bound) end
    put_due(S, at)
    return { 'ok', as_claim(S) }
  end

  function verbs.ack(id, letter_id, fence, upto, number, attempt, lease)
    local S, L = held(id, letter_id, fence)
    if not S then return LOST end
    note(S, number, attempt)
    if L then
      remove_letter(S, L.id)
      put(S, 'fa', num(S, 'fa') - L.count)
      add_meta('failed', -L.count)
      return { 'ok', {} }
    end
    settle(S, tonumber(upto))
    return { 'ok', go_on(S, lease) }
  end

  function verbs.retry(id, letter_id, fence, delay, number, attempt, bound)
    local S, L = held(id, letter_id, fence)
    if not S then return LOST end
    local at = now + tonumber(delay)
    note(S, number, attempt)
    note_due()
    if L then
      L.leased = false
      if attempt ~= '' then L.tries = L.tries + 1 end
      put_letter_due(S, L, at)
      save_letter(S, L)
      return { 'ok' }
    end
    put(S, 'ls', '0')
    if attempt ~= '' then put(S, 'at', num(S, 'at') + 1) end
    if bound ~= '' then put(S, 'bo', bound) end
    put_due(S, at)
    return { 'ok' }
  end

  function verbs.park(id, letter_id, fence, upto, new_id, reason, number, attempt, lease)
    local S, L = held(id, letter_id, fence)
    if not S then return LOST end
    note(S, number, attempt)
    local tried = attempt ~= '' and 1 or 0
    if L then
      L.attempts, L.reason, L.is_due = L.tries + tried, reason, false
      L.fence, L.leased, L.tries, L.due_at = L.fence + 1, false, 0, ''
      save_letter(S, L)
      remove_due(S.f.me, member(S, L.id))
      return { 'ok', {} }
    end
    local begin = math.max(num(S, 'cu') + 1, num(S, 'fi'))
    local records = {}
    for _, entry in ipairs(call('XRANGE', key_of('l', S), text(begin) .. '-0', upto .. '-0')) do
      local record = record_of(entry)
      if record[5] == '1' then records[#records + 1] = record end
    end
    bury(S, records, reason, num(S, 'at') + tried, new_id)
    settle(S, tonumber(upto))
    return { 'ok', go_on(S, lease) }
  end

  function verbs.letters(id, after, limit)
    local S, err = get_with_letters(id)
    if not S then return err end
    local begin = after ~= '' and call('ZRANK', key_of('o', S), after) or nil
    begin = begin and begin + 1 or 0
    local rows = {}
    -- To the rank before the first would be to the last one.
    if tonumber(limit) < 1 then return { 'ok', rows } end
    local ids = call('ZRANGE', key_of('o', S), begin, begin + tonumber(limit) - 1)
    for _, letter_id in ipairs(ids) do
      local L = load_letter(S, letter_id)
      if L then
        rows[#rows + 1] = {
          L.id, L.method, L.epoch, L.reason, text(L.attempts), L.at, flag(L.is_due),
          records_of(S, L),
        }
      end
    end
    return { 'ok', rows }
  end

  -- Arguments: id, whether all letters are meant, else their ids.
  function verbs.redrive(arguments)
    local S, err = get_with_letters(arguments[1])
    if not S then return err end
    local chosen, begin = arguments, 3
    if arguments[2] == '1' then chosen, begin = call('ZRANGE', key_of('o', S), 0, -1), 1 end
    local found = 0
    for i = begin, #chosen do
      local L = load_letter(S, chosen[i])
      if L and not L.is_due then
        L.is_due, L.tries = true, 0
        if L.due_at == '' then put_letter_due(S, L, now) end
        save_letter(S, L)
        found = found + 1
      end
    end
    if found > 0 then note_due() end
    return { 'ok', found }
  end

  function verbs.attempts(id)
    local S, err = get_with_letters(id)
    if not S then return err end
    return { 'ok', call('LRANGE', key_of('a', S), 0, -1) }
  end

  function verbs.load_endpoint(name)
    return {
      'ok', call('HGET', T .. ':ev', name) or '0', call('HGET', T .. ':es', name) or '',
    }
  end

  function verbs.save_endpoint(name, version, state)
    local known = call('HGET', T .. ':ev', name) or '0'
    if known ~= version then return { 'ok', '0' } end
    call('HSET', T .. ':ev', name, text(tonumber(version) + 1))
    call('HSET', T .. ':es', name, state)
    call('ZADD', T .. ':ez', text(now), name)
    return { 'ok', '1' }
  end

  function verbs.totals()
    local row = { 'ok' }
    local names = { 'sessions', 'active', 'sent', 'settled', 'failed', 'expired', 'retries' }
    for i, name in ipairs(names) do row[i + 1] = M[name] or '0' end
    return row
  end

  -- Sums that were lost are made anew from the sessions there are; what sessions that were lost
  -- owed counts as expired.
  local SUMS = { 'sent', 'settled', 'failed', 'expired', 'retries' }

  local function recount()
    local sums = { sessions = 0, active = 0 }
    for _, name in ipairs(SUMS) do sums[name] = 0 end
    local dues = {}
    restore_ids()
    for _, id in ipairs(call('ZRANGE', T .. ':ids', 0, -1)) do
      local f = call('HMGET', T .. ':s:' .. id, 'st', 'n', 'se', 'fa', 'ex', 're', 'me')
      if f[1] then
        if f[1] ~= 'deleted' then sums.sessions = sums.sessions + 1 end
        if f[1] == 'active' then sums.active = sums.active + 1 end
        for i, name in ipairs(SUMS) do
          sums[name] = sums[name] + tonumber(f[i + 1])
        end
        dues[f[7]] = true
      end
    end
    set_meta('sessions', text(sums.sessions))
    set_meta('active', text(sums.active))
    if is_meta_lost then
      for name, sum in pairs(sums) do set_meta(name, text(sum)) end
      for method in pairs(dues) do
        set_meta('due:' .. method, text(call('ZCARD', T .. ':due:' .. method)))
      end
      set_meta('ch', call('ZRANGE', T .. ':ch', -1, -1, 'WITHSCORES')[2] or '0')
      check_all()
    else
      local owed = tonumber(M.sent or '0') - tonumber(M.settled or '0')
      local lost = owed - (sums.sent - sums.settled)
      add_meta('settled', lost)
      add_meta('expired', lost)
    end
  end

  return {
    drop_ghosts = drop_ghosts, lose = lose, lose_log = lose_log, renew_epoch = renew_epoch,
    settle = settle, shed = shed,
    schedule = schedule, forget_keys = forget_keys, known_by = known_by, recount = recount,
  }
end

-- Run them.

local VARIADIC = { claim = true, redrive = true }
-- They wait for another call once an answer is large: nobody would get it in time.
local HEAVY = { read = true, tail = true, letters = true, claim = true }
local LARGE = 1048576

local function run(name, first, last)
  if not verbs[name] then rest() end
  local row
  if VARIADIC[name] then
    local arguments = {}
    for j = first, last do arguments[#arguments + 1] = ARGV[j] end
    row = verbs[name](arguments)
  else
    row = verbs[name](unpack(ARGV, first, last))
  end
  for S in pairs(dirty) do
    trim_log(S)
    save(S)
  end
  if is_lost then
    is_lost = false
    rest().recount()
  end
  return row
end

local function message(err)
  if type(err) == 'table' then err = err.err end
  -- Redis 6 says where it was raised, and Lua which line.
  return (string.gsub(string.gsub(tostring(err), '^@?user_script:%s*%d+:%s*', ''), '^%-', ''))
end

if is_meta_lost then rest().recount() end
local results = {}
local i = 3
while i <= #ARGV do
  local argc = tonumber(ARGV[i + 1])
  meta_before, take_back = {}, nil
  local ok, row = true, { 'later' }
  if answered <= LARGE or not HEAVY[ARGV[i]] then
    ok, row = pcall(run, ARGV[i], i + 2, i + 1 + argc)
  end
  if not ok then
    if take_back then pcall(take_back) end
    -- Such as memory that is full, which is found out before anything is written.
    for field, value in pairs(meta_before) do M[field] = value or nil end
    cache, dirty = {}, {}
    row = { 'error', message(row) }
  end
  results[#results + 1] = row
  i = i + 2 + argc
end

-- What changed, for whom no wake tells; where it can't be noted, that shows.
local flat = {}
for id in pairs(rung) do
  add_meta('ch', 1)
  flat[#flat + 1] = M.ch
  flat[#flat + 1] = id
end
for first = 1, #flat, SOME do
  pcall(call, 'ZADD', T .. ':ch', unpack(flat, first, math.min(first + SOME - 1, #flat)))
end

if next(meta_changed) then
  if now > latest then set_meta('latest', NOW) end
  flat = {}
  for name in pairs(meta_changed) do
    if M[name] then
      flat[#flat + 1] = name
      flat[#flat + 1] = M[name]
    end
  end
  -- Where memory is full, nothing was written before that this is about.
  if #flat > 0 then pcall(call, 'HSET', META, unpack(flat)) end
end
-- Only hints: to a user who may not use these channels what was done is not to look as if it had
-- failed.
for id in pairs(told) do pcall(call, 'PUBLISH', T .. ':w:' .. id, '') end
if tells_due then pcall(call, 'PUBLISH', T .. ':due', '') end
return results