-- Who may find out whether a part of a provider is well again: so many at a time, of all workers. A place that is not
-- given back is free when its time is over: its owner has found out that it is not, or is dead.
--
-- {name, place, most, milliseconds} -> {OK, now} or {REFUSED, now}
-- {name, place}                     -> {OK, now}                       it is given back
local key = prefix .. 'probes:' .. arg[1]
redis.call('ZREMRANGEBYSCORE', key, '-inf', digits(now))
if not arg[3] then
    redis.call('ZREM', key, arg[2])
elseif redis.call('ZCARD', key) >= arg[3] then
    return cmsgpack.pack({REFUSED, now})
else
    redis.call('ZADD', key, digits(now + arg[4]), arg[2])
    redis.call('PEXPIRE', key, digits(arg[4]))
end
return cmsgpack.pack({OK, now})
