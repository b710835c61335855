-- A calendar counter is born, unless it has been meanwhile. One that is there and counts less than the ledger knows has
-- missed something, such as the time in which no rule asked for it: it counts that from now on.
--
-- Of calls that have ended by now the ledger knows what they have used. Settlements of these that come late give back no
-- more than `e`: by so much the total is too high if they are all that is missing. See settle.lua.
--
-- `hold` is that of whoever asked the ledger while nobody was let in (hold.lua), and ends with this; without it what the
-- ledger has said is worth nothing.
--
-- {root, counter, start, end, used, hold or false} -> {OK, now, 1 if it was there and has missed something, else 0}
--                                                     {NO_HOLD, now, 0}
local missed = 0
if root == arg[1] then
    local key = sum_key(arg[2], arg[3])
    if arg[6] then
        local ends = redis.call('HGET', key, 'h:' .. arg[6])
        redis.call('HDEL', key, 'h:' .. arg[6])
        if tonumber(ends or 0) <= now then
            return cmsgpack.pack({NO_HOLD, now, 0})
        end
    end
    if redis.call('HSETNX', key, 't', digits(arg[5])) == 1 then
        redis.call('PEXPIRE', key, digits(math.max(arg[4] - now, 0) + SPARE_MS))
    end
    local more = tonumber(redis.call('HGET', key, 't')) - arg[5]
    if more < 0 then
        redis.call('HSET', key, 't', digits(arg[5]))
        missed = 1
    end
    redis.call('HINCRBY', key, 'n', 1)
    redis.call('HSET', key, 'b', digits(now), 'e', digits(math.max(more, 0)))
end
return cmsgpack.pack({OK, now, missed})
