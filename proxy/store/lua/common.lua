-- What comes before every script: its argument, the clock, and who is alive.
--
-- KEYS[1] is `<prefix>root`; all other keys begin with the same prefix, and a hash tag in it keeps them on one node of
-- a cluster. ARGV[1] is one msgpack array. Numbers are integers below 2^53, which Lua and msgpack keep exactly; where one
-- becomes text it is by `digits`, because tostring() has 14 digits only.
--
-- `root` is "<run>|<random>": the life of this data set. It begins anew when the server has lost it or may have lost a
-- part (another run of it). Calendar totals and slots of another life are not looked at: they are in other keys.
--
--   lease:<owner>               the root under which this worker lives; ends by itself
--   peers                       sorted set: owner -> when its lease ends
--   call:<call>                 what a call has reserved, or TOMBSTONE when it was settled
--   log:<counter>               sliding: {first, last, amount, owner, reserved, ...} for each entry, oldest first
--   sum:<root>:<start>:<counter>   calendar: hash of t (total), r:<owner> (reserved), and of the last time that the ledger
--                               was asked: b (when), n (how often it was by then), e (by how much t was more than it knew)
--   busy:<root>:<counter>       concurrency: set of owners that may have slots
--   slots:<root>:<owner>:<counter> concurrency: set of calls
local prefix = string.sub(KEYS[1], 1, -5)
local arg = cmsgpack.unpack(ARGV[1])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local root = redis.call('GET', KEYS[1])

local SLIDING, CALENDAR, SLOTS = 1, 2, 3
local OK, REFUSED, NO_LEASE, OTHER_PERIOD, ABSENT, KNOWN, NO_HOLD = 0, 1, 2, 3, 4, 5, 6
local TOMBSTONE, TOMBSTONE_MS, RECORD_MS = '-', 600000, 86400000
local SPARE_MS = 60000   -- by so much a counter outlives what counts in it
local SLOT_WAIT = 1000   -- nobody knows when a slot comes back

local function digits(number)
    return string.format('%.0f', number + 0) -- there is a -0, which Redis does not read
end

local function lease_key(owner) return prefix .. 'lease:' .. owner end
local function call_key(call) return prefix .. 'call:' .. call end
local function log_key(name) return prefix .. 'log:' .. name end
local function sum_key(name, start) return prefix .. 'sum:' .. root .. ':' .. digits(start) .. ':' .. name end
local function busy_key(name) return prefix .. 'busy:' .. root .. ':' .. name end
local function slots_key(name, owner) return prefix .. 'slots:' .. root .. ':' .. owner .. ':' .. name end

local asked = {}
local function alive(owner)
    if asked[owner] == nil then
        asked[owner] = redis.call('GET', lease_key(owner)) == root
    end
    return asked[owner]
end

-- The names of the slots that one call takes of a counter.
local function members(call, amount)
    local names = {}
    for i = 1, amount do
        names[i] = i == 1 and call or call .. '#' .. digits(i)
    end
    return names
end

local function take_slots(name, owner, call, amount)
    local key, busy = slots_key(name, owner), busy_key(name)
    for _, member in ipairs(members(call, amount)) do
        redis.call('SADD', key, member)
    end
    redis.call('SADD', busy, owner)
    redis.call('PEXPIRE', key, RECORD_MS)
    redis.call('PEXPIRE', busy, RECORD_MS)
end

-- The entries of a sliding log that still count.
local function read_log(name, span)
    local packed = redis.call('GET', log_key(name))
    local entries = {}
    for _, entry in ipairs(packed and cmsgpack.unpack(packed) or {}) do
        if entry[2] + span > now then
            entries[#entries + 1] = entry
        end
    end
    return entries
end

local function write_log(name, span, entries)
    local newest = entries[#entries]
    if newest then
        redis.call('SET', log_key(name), cmsgpack.pack(entries), 'PX', digits(newest[2] + span - now + SPARE_MS))
    else
        redis.call('DEL', log_key(name))
    end
end

-- Add to what an owner has reserved in an entry; nothing is kept of one that has nothing any more.
local function hold(entry, owner, amount)
    for i = 4, #entry, 2 do
        if entry[i] == owner then
            entry[i + 1] = entry[i + 1] + amount
            if entry[i + 1] <= 0 then
                table.remove(entry, i)
                table.remove(entry, i)
            end
            return
        end
    end
    if amount > 0 then
        entry[#entry + 1] = owner
        entry[#entry + 1] = amount
    end
end

-- A new amount joins the newest entry while that is younger than a hundredth of the span. Returns the entry.
local function push(entries, span, amount)
    local newest = entries[#entries]
    if newest and now - newest[1] < span / 100 then
        newest[2] = math.max(newest[2], now)
        newest[3] = newest[3] + amount
    else
        newest = {now, now, amount}
        entries[#entries + 1] = newest
    end
    return newest
end
