-- A calendar counter is born, unless it has been meanwhile. One that is there and counts less than the ledger knows has
-- missed something, such as the time in which no rule asked for it: it counts that from now on.
--
-- {root, counter, start, end, used}
if root == arg[1] then
    local key = sum_key(arg[2], arg[3])
    if redis.call('HSETNX', key, 't', digits(arg[5])) == 1 then
        redis.call('HSET', key, 'b', digits(now))
        redis.call('PEXPIRE', key, digits(math.max(arg[4] - now, 0) + SPARE_MS))
    elseif tonumber(redis.call('HGET', key, 't')) < arg[5] then
        redis.call('HSET', key, 't', digits(arg[5]))
    end
end
return cmsgpack.pack({OK, now})
