-- How much there is. Those that have expired leave first; not all of them at once.
--
-- {life} -> {how many have left, entries, bytes, evicted}
local left = purge(time() - tonumber(ARGV[1]), 500)
return {left, redis.call('ZCARD', index), bytes(), tonumber(redis.call('HGET', totals, 'evicted') or 0)}
