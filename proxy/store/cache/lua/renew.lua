-- These calls are still under way. A lease that a server has lost is taken anew; one that is another's now is left alone.
--
-- {milliseconds, key, lease, key, lease, ...}
for i = 2, #ARGV, 2 do
    local name, lease = lease_key(ARGV[i]), ARGV[i + 1]
    local holder = redis.pcall('GET', name)
    if holder == lease then
        redis.call('PEXPIRE', name, ARGV[1])
    elseif not holder then
        redis.pcall('SET', name, lease, 'PX', ARGV[1])
    end
end
return 0
