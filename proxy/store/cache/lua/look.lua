-- What there is, and, if nothing is younger than `since`, who makes the call.
--
-- {key, since, lease, milliseconds, large} -> {entry}           it is young enough
--                                          -> {entry or nil}, '', now               whoever asks
--                                          -> {entry or nil}, the lease of somebody else, now
-- With an empty lease nothing is taken. Of an entry of more than `large` bytes only the size is told: nobody is to wait
-- behind it.
local key, since, lease, life, large = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], tonumber(ARGV[5])

local value = read(key)
local is_young = value and moment(value, 38) >= since -- when it was made: behind 36 bytes of seal and the mark of an array
if value and #value > large then
    value = #value
end
if is_young then
    return {value}
end
-- A server that is full, or takes no writes, keeps nobody from making the call.
local taken = lease ~= '' and redis.pcall('SET', lease_key(key), lease, 'NX', 'PX', life)
if type(taken) == 'table' then
    return {value or false, '', time()}
end
local holder = redis.pcall('GET', lease_key(key))
if type(holder) ~= 'string' or not string.find(holder, '^[^:]+:.') then
    holder = ''
    if lease ~= '' then -- it is no lease, and would not end by itself
        redis.pcall('SET', lease_key(key), lease, 'PX', life)
    end
end
return {value or false, holder, time()}
