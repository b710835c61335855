-- What comes before every script of the response cache.
--
-- KEYS[1] is the prefix of all keys; a hash tag in it keeps them on one node of a cluster. Numbers are integers below
-- 2^53; where one becomes text it is by `digits`, because tostring() has 14 digits only.
--
--   <key>          an entry, sealed (core/entry.py). Those that follow begin as no key of an entry does:
--   =lease/<key>   who makes the call: <flight>:<owner>; ends by itself
--   =index         sorted set: key -> when the entry was kept
--   =sizes         hash: key -> the bytes that it counts for
--   =totals        hash of bytes (the sum of all sizes) and evicted (how many have made room)
--   =deleted       hash: team, or * for all -> when its entries were deleted
local prefix = KEYS[1]
local index, sizes, totals = prefix .. '=index', prefix .. '=sizes', prefix .. '=totals'
local deleted = prefix .. '=deleted'

local function digits(number)
    return string.format('%.0f', number + 0) -- there is a -0, which Redis does not read
end

local function lease_key(key) return prefix .. '=lease/' .. key end

local function time()
    local clock = redis.call('TIME')
    return clock[1] * 1000 + math.floor(clock[2] / 1000)
end

-- nil: there is nothing. What is no string is an empty one: it does not open either.
local function read(key)
    local value = redis.pcall('GET', prefix .. key)
    if type(value) == 'table' then
        return ''
    end
    return value or nil
end

-- A large number of MessagePack, from this byte of an entry on; 0: there is none.
local function moment(value, first)
    local bytes = {string.byte(value, first, first + 8)}
    if bytes[1] ~= 0xcf or not bytes[9] then
        return 0
    end
    local number = 0
    for i = 2, 9 do
        number = number * 256 + bytes[i]
    end
    return number
end

local function bytes()
    return tonumber(redis.call('HGET', totals, 'bytes') or 0)
end

-- Out of all that knows of it. What is no number of bytes, because somebody else has written it, counts for nothing.
local function strike(key)
    local size = redis.call('HGET', sizes, key)
    if size then
        local number = tonumber(size)
        redis.call('HDEL', sizes, key)
        redis.call('HINCRBY', totals, 'bytes', digits(number and number >= 0 and number < 2^53 and -number or 0))
    end
    redis.call('ZREM', index, key)
end

local function remove(key)
    strike(key)
    return redis.call('UNLINK', prefix .. key)
end

-- At most so many of those that were kept by then.
local function purge(by, most)
    local over = redis.call('ZRANGEBYSCORE', index, '-inf', digits(by), 'LIMIT', 0, most)
    for _, key in ipairs(over) do
        remove(key)
    end
    return #over
end

local function release(key, lease)
    if redis.pcall('GET', lease_key(key)) == lease then
        redis.call('DEL', lease_key(key))
    end
end
