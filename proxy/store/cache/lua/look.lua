-- What there is, and, if nothing is younger than `since`, who makes the call.
--
-- {key, since, lease, milliseconds} -> {entry}           it is young enough
--                                   -> {entry or nil}, '', now               whoever asks
--                                   -> {entry or nil}, the lease of somebody else, now
-- With an empty lease nothing is taken.
local key, since, lease, life = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]

local value = read(key)
if value and moment(value, 38) >= since then -- when it was made: behind 36 bytes of seal and the mark of an array
    return {value}
end
-- A server that is full, or takes no writes, keeps nobody from making the call.
local taken = lease ~= '' and redis.pcall('SET', lease_key(key), lease, 'NX', 'PX', life)
if type(taken) == 'table' then
    return {value or false, '', time()}
end
local holder = redis.pcall('GET', lease_key(key))
return {value or false, type(holder) == 'string' and holder or '', time()}
