-- Somebody else has written where the books are. They go, and what is there counts for nothing until it expires.
--
-- {key or '', lease} -> 0; this entry goes, too, and its lease is given back
local key, lease = ARGV[1], ARGV[2]

local function is(name, kind)
    local found = redis.call('TYPE', name).ok
    return found == kind or found == 'none'
end

local function counts(field)
    local value = redis.call('HGET', totals, field)
    return not value or value == '0' or (#value <= 15 and string.match(value, '^[1-9]%d*$') ~= nil)
end

if is(totals, 'hash') and not counts('evicted') then
    redis.call('HDEL', totals, 'evicted')
end
if not (is(index, 'zset') and is(sizes, 'hash') and is(totals, 'hash') and counts('bytes')) then
    redis.call('DEL', index, sizes, totals)
end
if not is(deleted, 'hash') then
    redis.call('DEL', deleted)
end
if key ~= '' then
    redis.call('UNLINK', prefix .. key)
    release(key, lease)
end
return 0
