-- While somebody has the ledger asked anew about a calendar counter that has missed something, nobody is let in by it:
-- who came in between would be in neither number, or in both. A hold ends by itself, if whoever has it does not live to
-- end it.
--
-- {root, counter, start, end, name of a hold, milliseconds; 0 ends it}
-- {root, counter, start, end, false}
-- -> {OK, now, how many holds there are}
if root ~= arg[1] then
    return cmsgpack.pack({OK, now, 0})
end
local key = sum_key(arg[2], arg[3])
if arg[5] and arg[6] > 0 then
    redis.call('HSET', key, 'h:' .. arg[5], digits(now + arg[6]))
    if redis.call('PTTL', key) < 0 then
        redis.call('PEXPIRE', key, digits(math.max(arg[4] - now, 0) + SPARE_MS))
    end
elseif arg[5] then
    redis.call('HDEL', key, 'h:' .. arg[5])
end
local holds, fields = 0, redis.call('HGETALL', key)
for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, 2) == 'h:' and tonumber(fields[i + 1]) > now then
        holds = holds + 1
    end
end
return cmsgpack.pack({OK, now, holds})
