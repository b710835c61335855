-- Forget entries, and what is under way to be kept of the same team. How many of them there were.
--
-- {team or *, key, key, ...}
local REMEMBERED = 86400000 -- no call lasts as long
redis.pcall('HSET', deleted, ARGV[1], digits(time())) -- a server that is full does not take it, and is emptied all the same
redis.pcall('PEXPIRE', deleted, REMEMBERED)
local removed = 0
for i = 2, #ARGV do
    removed = removed + remove(ARGV[i])
end
if redis.call('ZCARD', index) == 0 then
    redis.call('HDEL', totals, 'bytes') -- nothing is nothing, whatever was counted
end
return removed
