-- Who may find out whether a part of a provider is well again: so many at a time, of all workers. A place is free when it
-- is given back or its time is over: its owner is slow, or dead. After one that has found out that it is not well, its
-- time begins anew.
--
-- {name, place, milliseconds, most} -> {OK, now} or {REFUSED, now}
-- {name, '', 0, most}               -> {OK, now} or {REFUSED, now}   whether there is a place; none is taken
-- {name, place, milliseconds}       -> {OK, now}                      it is kept for so long, or with 0 given back
local key, place, last, most = prefix .. 'probes:' .. arg[1], arg[2], arg[3], arg[4]
redis.call('ZREMRANGEBYSCORE', key, '-inf', digits(now))
if most and redis.call('ZCARD', key) >= most then
    return cmsgpack.pack({REFUSED, now})
elseif last == 0 then
    redis.call('ZREM', key, place)
else
    redis.call('ZADD', key, digits(now + last), place)
    redis.call('PEXPIRE', key, digits(math.max(last, redis.call('PTTL', key))))
end
return cmsgpack.pack({OK, now})
