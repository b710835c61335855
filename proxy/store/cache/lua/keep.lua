-- Keep an entry, within the bounds of all of them, and give back the lease. Those that were kept first make room.
--
-- {key, lease, life, most, size, began, entry} -> KEPT, FULL (the server takes nothing more), OLD (it was asked for before
-- what is there, or before what was there was deleted), or MORE: there is no room yet, and more work to be done than others
-- should wait for. With an empty entry only room is made, and the lease is kept for that, unless it is OLD.
local KEPT, FULL, MORE, OLD = 0, 1, 2, 3
local AT_ONCE, A_FEW, SKEW = 500, 100, 5000
local key, lease, life, most, size = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local began, entry = tonumber(ARGV[6]), ARGV[7]

local now, full = time(), false

-- What is of the future is nobody's.
local function believed(moment)
    moment = tonumber(moment) or 0
    return moment <= now + SKEW and moment or 0
end

local function is_old()
    local value = read(key)
    local newer = value and moment(value, #value - 8) or 0 -- the last number in it
    if began < believed(newer) then
        return true
    end
    local cleared = redis.pcall('HMGET', deleted, string.match(key, '^[^:/]*'), '*')
    return not cleared.err and began <= math.max(believed(cleared[1]), believed(cleared[2]))
end

if began > 0 and is_old() then
    if lease ~= '' then
        release(key, lease)
    end
    return OLD
end
if entry ~= '' then
    -- Before all else: a server that is full lets a script go on that has written anything.
    full = not redis.pcall('SET', prefix .. key, entry, 'PX', digits(life)).ok
    if full then
        redis.call('UNLINK', prefix .. key)
    end
end
strike(key)
purge(now - life, A_FEW)
local room, evicted = most - size, 0
while evicted < AT_ONCE and bytes() > room and not full do
    local oldest = redis.call('ZRANGE', index, 0, 0)[1]
    if not oldest then
        redis.call('DEL', totals, sizes) -- somebody has taken the index away, and nobody knows any more what there is
        break
    end
    remove(oldest)
    evicted = evicted + 1
end
if evicted > 0 then
    redis.call('HINCRBY', totals, 'evicted', evicted)
end
if bytes() > room and not full then
    redis.call('UNLINK', prefix .. key)
    return MORE
elseif entry == '' then
    return KEPT
end
if not full then
    redis.call('PEXPIREAT', prefix .. key, digits(now + life))
    redis.call('ZADD', index, digits(now), key)
    redis.call('HSET', sizes, key, digits(size))
    redis.call('HINCRBY', totals, 'bytes', digits(size))
end
if lease ~= '' then
    release(key, lease)
end
return full and FULL or KEPT
