-- The state of all jobs. A call is one command, done whole or not at all, by Redis' own clock: no host's is trusted.
--
-- KEYS[1] prefixes every key; ARGV: the command, what it is asked (JSON), and, in tests alone, the time.
-- A lease is (id, attempt): attempts only grow, so that whatever an older one still writes is refused.
--
--   job:ID     hash: the job               line:CLIENT  zset: a client's waiting jobs by their number
--   events:ID  list: type, newline, data   clients      set: those with a line;  turns  zset: when they were served
--   leases     zset: running jobs by when they lapse        expiry, memory  zsets: by when they expire, are forgotten
--   holders    hash: ticket -> id attempt  webhooks     zset: by when they are due
--   keys       hash: idempotency keys      untidy       zset: jobs that may have files nobody needs
--   uploads    zset: ids whose files are being written      counts, pace, ended, restarts: for metrics

local command, ask = ARGV[1], cjson.decode(ARGV[2])
local call = redis.call

local function key(...) return KEYS[1] .. ':' .. table.concat({...}, ':') end
local function now()
  if ARGV[3] then return tonumber(ARGV[3]) end
  local time = call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1e6
end
local now = now()
local function number(value) return string.format('%.6f', value) end
local function refuse(reason) error({refusal = reason}) end
local function get(id, field) return call('HGET', key('job', id), field) end
local function set(id, ...) call('HSET', key('job', id), ...) end

local function move(id, status)
  local before = get(id, 'status')
  if before then call('HINCRBY', key('counts'), before, -1) end
  call('HINCRBY', key('counts'), status, 1)
  set(id, 'status', status)
end

local function tell(id, type, data)
  call('RPUSH', key('events', id), type .. '\n' .. data)
  call('PUBLISH', key('told'), id .. ' ' .. type)
end

local function wait(id)
  local client = get(id, 'client')
  call('ZADD', key('line', client), get(id, 'seq'), id)
  call('SADD', key('clients'), client)
end

local function leave_line(id)
  local client = get(id, 'client')
  call('ZREM', key('line', client), id)
  if call('ZCARD', key('line', client)) == 0 then call('SREM', key('clients'), client) end
end

local function let_go(id)
  call('ZREM', key('leases'), id)
  local holder = get(id, 'holder')
  if holder then
    call('HDEL', key('holders'), holder)
    call('HDEL', key('job', id), 'holder')
  end
end

local function expire(id)
  move(id, 'expired')
  call('ZADD', key('memory'), get(id, 'expires_at') + ask.ttl_s, id)
  call('ZREM', key('expiry'), id)
  call('ZREM', key('webhooks'), id)
  call('DEL', key('events', id))
  call('HDEL', key('job', id), 'result', 'preview', 'checkpoint')
  call('ZADD', key('untidy'), now, id)
end

local function status_of(id)
  local status = get(id, 'status')
  if not status then refuse('NOTFOUND') end
  local expires_at = get(id, 'expires_at')
  if status ~= 'expired' and expires_at and tonumber(expires_at) <= now then
    expire(id)
    return 'expired'
  end
  return status
end

local function finish(id, status, problem, data)
  move(id, status)
  set(id, 'finished_at', number(now), 'expires_at', number(now + ask.ttl_s), 'error', problem)
  let_go(id)
  call('ZADD', key('expiry'), now + ask.ttl_s, id)
  call('ZADD', key('untidy'), now, id)
  -- who cancels it counts it, and so does a worker with metrics of its own
  if status ~= 'cancelled' and not ask.counted then call('RPUSH', key('ended'), id) end
  if get(id, 'webhook_url') ~= '' then call('ZADD', key('webhooks'), now, id) end
  tell(id, status, data)
end

local function leased()
  if get(ask.id, 'status') ~= 'running' or tonumber(get(ask.id, 'attempt')) ~= ask.attempt then
    refuse('LEASELOST')
  end
  call('ZADD', key('leases'), now + ask.lease_s, ask.id)
end

-- Round robin: everybody's first job, then everybody's second; whoever was served longest ago comes first.
local function comes_before(one, other)
  if one.turn ~= other.turn then return one.turn < other.turn end
  return one.seq < other.seq
end

local function nth_of(client, nth)
  local found = call('ZRANGE', key('line', client), nth - 1, nth - 1, 'WITHSCORES')
  if not found[1] then return nil end
  local turn = call('ZSCORE', key('turns'), client)
  return {id = found[1], seq = tonumber(found[2]), turn = turn and tonumber(turn) or 0, client = client}
end

local function position(id)
  local own = get(id, 'client')
  local nth = call('ZRANK', key('line', own), id) + 1
  local here, before = nth_of(own, nth), 0
  for _, client in ipairs(call('SMEMBERS', key('clients'))) do
    before = before + math.min(call('ZCARD', key('line', client)), nth - 1)
    local other = nth_of(client, nth)
    if other and comes_before(other, here) then before = before + 1 end
  end
  return before + 1
end

local function known()
  local id = ask.key ~= '' and call('HGET', key('keys'), ask.client .. '\n' .. ask.key)
  if id and get(id, 'fingerprint') ~= ask.fingerprint then refuse('OTHERORDER') end
  return id
end

local commands = {}

function commands.known() return known() end

function commands.uploading() call('ZADD', key('uploads'), now, ask.id) end

function commands.submit()
  if get(ask.id, 'status') then return ask.id end -- asked again: the answer was lost on its way
  local twin = known()
  if twin then return twin end
  local queued = tonumber(call('HGET', key('counts'), 'queued') or 0)
  if queued >= ask.max_queued then refuse('FULL ' .. queued .. ' ' .. (call('GET', key('pace')) or 0)) end
  set(ask.id, 'id', ask.id, 'client', ask.client, 'parameters', ask.parameters, 'created_at', number(now),
    'seq', call('INCR', key('seq')), 'iteration', 0, 'attempt', 0, 'deaths', 0, 'tries', 0, 'key', ask.key,
    'fingerprint', ask.fingerprint, 'webhook_url', ask.webhook_url)
  if ask.key ~= '' then call('HSET', key('keys'), ask.client .. '\n' .. ask.key, ask.id) end
  move(ask.id, 'queued')
  wait(ask.id)
  call('ZREM', key('uploads'), ask.id)
  return ask.id
end

function commands.get()
  local status = status_of(ask.id)
  local fields = call('HGETALL', key('job', ask.id))
  if status == 'queued' then
    fields[#fields + 1] = 'position'
    fields[#fields + 1] = tostring(position(ask.id))
  end
  return fields
end

function commands.events()
  status_of(ask.id)
  return call('LRANGE', key('events', ask.id), ask.after, -1)
end

function commands.cancel()
  local before = status_of(ask.id)
  if before == 'queued' then leave_line(ask.id) end
  if before == 'queued' or before == 'running' then finish(ask.id, 'cancelled', '', ask.data) end
  return before
end

function commands.counts() return call('HGETALL', key('counts')) end

function commands.claim()
  local service = call('GET', key('store'))
  if service and service ~= '' and ask.store ~= service then
    refuse('OTHERSTORE ' .. service)
  end
  local held = ask.holder ~= '' and call('HGET', key('holders'), ask.holder)
  if held then return held end -- asked again: the answer was lost on its way
  local first
  for _, client in ipairs(call('SMEMBERS', key('clients'))) do
    local candidate = nth_of(client, 1)
    if not first or comes_before(candidate, first) then first = candidate end
  end
  if not first then return false end
  local id = first.id
  leave_line(id)
  move(id, 'running')
  call('ZADD', key('turns'), call('INCR', key('turn')), first.client)
  call('ZREMRANGEBYRANK', key('turns'), 0, -10001)
  if not get(id, 'started_at') then set(id, 'started_at', number(now)) end
  local attempt = call('HINCRBY', key('job', id), 'attempt', 1)
  call('ZADD', key('leases'), now + ask.lease_s, id)
  if ask.holder ~= '' then
    set(id, 'holder', ask.holder)
    call('HSET', key('holders'), ask.holder, id .. ' ' .. attempt)
  end
  return id .. ' ' .. attempt
end

function commands.held() return call('HGET', key('holders'), ask.holder) end

function commands.check() leased() end

function commands.report()
  leased()
  set(ask.id, 'iteration', ask.iteration, 'loss', ask.loss)
  tell(ask.id, 'progress', ask.data)
end

-- A file that was written is named here; the one that it replaces is given back, to be removed.
function commands.name()
  leased()
  local before = get(ask.id, ask.file)
  set(ask.id, ask.file, ask.name)
  if ask.data ~= '' then tell(ask.id, ask.file, ask.data) end
  return before
end

function commands.succeed()
  if get(ask.id, 'result') == ask.name then return end -- asked again: the answer was lost on its way
  leased()
  set(ask.id, 'result', ask.name)
  finish(ask.id, 'succeeded', '', ask.data)
  local seconds, pace = now - get(ask.id, 'started_at'), call('GET', key('pace'))
  call('SET', key('pace'), number(pace and 0.8 * pace + 0.2 * seconds or seconds))
end

function commands.fail()
  leased()
  finish(ask.id, 'failed', ask.error, ask.data)
end

-- The job goes back to its place in line; with an error, that was a worker's death, and the last that it may cost is
-- its end.
function commands.died()
  local running = get(ask.id, 'status') == 'running' and tonumber(get(ask.id, 'attempt')) == ask.attempt
  if not running then return get(ask.id, 'status') end
  local deaths = call('HINCRBY', key('job', ask.id), 'deaths', ask.error and 1 or 0)
  if ask.error and deaths >= ask.max_attempts then
    finish(ask.id, 'failed', ask.error, ask.data)
    return 'failed'
  end
  let_go(ask.id)
  move(ask.id, 'queued')
  wait(ask.id)
  call('PUBLISH', key('told'), ask.id .. ' queued')
  return 'queued'
end

function commands.restarted() call('HINCRBY', key('restarts'), ask.kind, 1) end

-- Running jobs of which nobody has given a sign for the length of a lease.
function commands.lapsed()
  local found = {}
  for _, id in ipairs(call('ZRANGEBYSCORE', key('leases'), '-inf', now)) do
    found[#found + 1] = id .. ' ' .. get(id, 'attempt')
  end
  return found
end

-- No lease lapses while Redis was away: nobody could give a sign.
function commands.renew()
  for _, id in ipairs(call('ZRANGE', key('leases'), 0, -1)) do
    call('ZADD', key('leases'), 'GT', now + ask.lease_s, id)
  end
end

-- Whoever asks is to tell of them, and nobody else for a while.
function commands.due_webhooks()
  local due = call('ZRANGEBYSCORE', key('webhooks'), '-inf', now)
  for _, id in ipairs(due) do call('ZADD', key('webhooks'), now + ask.hold_s, id) end
  local later = call('ZRANGEBYSCORE', key('webhooks'), '(' .. number(now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  return {later[2] and number(later[2] - now) or '', unpack(due)}
end

function commands.webhook_done()
  local tries = get(ask.id, 'tries')
  if not tries then refuse('NOTFOUND') end
  local again_s = ask.backoff_s[tonumber(tries) + 1]
  set(ask.id, 'tries', tries + 1)
  if ask.delivered or not again_s then
    call('ZREM', key('webhooks'), ask.id)
  else
    call('ZADD', key('webhooks'), now + again_s, ask.id)
  end
end

function commands.sweep()
  for _, id in ipairs(call('ZRANGEBYSCORE', key('expiry'), '-inf', now)) do expire(id) end
  for _, id in ipairs(call('ZRANGEBYSCORE', key('memory'), '-inf', now)) do
    local name = get(id, 'client') .. '\n' .. get(id, 'key')
    if call('HGET', key('keys'), name) == id then call('HDEL', key('keys'), name) end
    call('HINCRBY', key('counts'), 'expired', -1)
    call('DEL', key('job', id))
    call('ZREM', key('memory'), id)
    call('ZADD', key('untidy'), now, id)
  end
  for _, id in ipairs(call('ZRANGEBYSCORE', key('uploads'), '-inf', now - ask.upload_s)) do
    call('ZREM', key('uploads'), id)
    call('ZADD', key('untidy'), now, id)
  end
end

function commands.untidy() return call('ZRANGE', key('untidy'), 0, 99) end

function commands.tidied() call('ZREM', key('untidy'), ask.id) end

-- What a job's folder is to keep: all of it, or these files, or none where there is none to keep.
function commands.kept()
  local status = get(ask.id, 'status')
  if not status or status == 'expired' then return {} end
  if status == 'queued' or status == 'running' then return {'*'} end
  return {'+', get(ask.id, 'result') or '', get(ask.id, 'preview') or ''}
end

-- What ended, and which workers did, since somebody last asked: every end is given to one asker.
function commands.ended()
  local found = {call('LRANGE', key('ended'), 0, -1), call('HGETALL', key('restarts'))}
  call('DEL', key('ended'), key('restarts'))
  return found
end

-- The web tier says which store and volume it has; a worker is told both.
function commands.open()
  call('SET', key('store'), ask.store)
  call('SETNX', key('volume'), ask.volume)
  return call('GET', key('volume'))
end

function commands.service()
  return {call('GET', key('store')) or '', call('GET', key('volume')) or ''}
end

function commands.complain() call('SETEX', key('complaint'), 60, ask.reason) end

function commands.complaint() return call('GET', key('complaint')) end

local done, reply = pcall(commands[command])
if done then return reply end
if type(reply) == 'table' and reply.refusal then return redis.error_reply(reply.refusal) end
if type(reply) == 'table' then return reply end
return redis.error_reply('BUG ' .. tostring(reply))
