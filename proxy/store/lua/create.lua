-- A calendar counter is born, unless it has been meanwhile. One that is there and counts less than the ledger knows has
-- missed something, such as the time in which no rule asked for it: it counts that from now on.
--
-- Of calls that have ended by now the ledger knows what they have used. Settlements of these that come late give back no
-- more than `e`: by so much the total is too high if they are all that is missing. See settle.lua.
--
-- {root, counter, start, end, used}
if root == arg[1] then
    local key = sum_key(arg[2], arg[3])
    if redis.call('HSETNX', key, 't', digits(arg[5])) == 1 then
        redis.call('PEXPIRE', key, digits(math.max(arg[4] - now, 0) + SPARE_MS))
    end
    local more = tonumber(redis.call('HGET', key, 't')) - arg[5]
    if more < 0 then
        redis.call('HSET', key, 't', digits(arg[5]))
    end
    redis.call('HINCRBY', key, 'n', 1)
    redis.call('HSET', key, 'b', digits(now), 'e', digits(math.max(more, 0)))
end
return cmsgpack.pack({OK, now})
