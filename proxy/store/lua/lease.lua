-- A worker lives for another `lease` milliseconds.
--
-- {owner, root, lease}                                        -> {OK, now, peers} or {NO_LEASE, now}
-- {owner, false, lease, run, random, {counter, call, amount}, ...} -> {OK, now, peers, root}
-- The second form takes the slots that the worker holds once more, since others may have seen its lease end. `run` is
-- what the server says who it is, '' when it does not say.
local owner, lease = arg[1], arg[3]
if arg[2] then
    if root ~= arg[2] or not alive(owner) then
        return cmsgpack.pack({NO_LEASE, now})
    end
else
    local run = arg[4]
    local length = string.len(run) + 1
    if not root or (run ~= '' and string.sub(root, 1, length) ~= run .. '|') then
        root = run .. '|' .. arg[5]
        redis.call('SET', KEYS[1], root)
    end
    for i = 6, #arg do
        local name, call, amount = arg[i][1], arg[i][2], arg[i][3]
        if redis.call('GET', call_key(call)) ~= TOMBSTONE then
            take_slots(name, owner, call, amount)
        end
    end
end

redis.call('SET', lease_key(owner), root, 'PX', digits(lease))
local peers = prefix .. 'peers'
redis.call('ZREMRANGEBYSCORE', peers, '-inf', digits(now))
redis.call('ZADD', peers, digits(now + lease), owner)
redis.call('PEXPIRE', peers, digits(lease))
return cmsgpack.pack({OK, now, redis.call('ZCARD', peers), root})
