-- What a call has really used. Done once, however often it is asked for.
--
-- {owner, root, call, ended, {{SLIDING, counter, amount, used, span}, {CALENDAR, counter, amount, used, start},
--                             {SLOTS, counter, amount}, ...}}
-- `root` is the one under which it was granted; false: nobody has heard that it was, and it shall not be any more.
-- `ended` is when that was known, by this clock as far as the worker knows it.
local owner, granted, call, ended, claims = arg[1], arg[2], arg[3], arg[4], arg[5]

if root then
    for _, claim in ipairs(claims) do
        if claim[1] == SLOTS then
            redis.call('SREM', slots_key(claim[2], owner), unpack(members(call, math.max(claim[3], 1))))
        end
    end
end
local record = redis.call('GET', call_key(call))
if record == TOMBSTONE then
    return cmsgpack.pack({OK, now})
end
redis.call('SET', call_key(call), TOMBSTONE, 'PX', TOMBSTONE_MS)
if not record and (not granted or granted == root or not root) then
    return cmsgpack.pack({OK, now}) -- it never came, or was settled so long ago that its tombstone is gone
end
record = record and cmsgpack.unpack(record) or {granted}

-- An entry that counts no more stays as it is.
local function settle_log(claim, first)
    local entries = read_log(claim[2], claim[5])
    local more = claim[4] - claim[3]
    for _, entry in ipairs(entries) do
        if entry[1] == first then
            entry[3] = math.max(entry[3] + more, 0)
            hold(entry, owner, -claim[3])
            write_log(claim[2], claim[5], entries)
            return
        end
    end
end

-- `n`: how often the ledger had been asked for the total when this call was granted by it; nil in another life.
local function settle_sum(claim, start, n)
    local key = sum_key(claim[2], start)
    local had = redis.call('HMGET', key, 't', 'b', 'n', 'e')
    if not had[1] then
        return
    end
    local total, more, excess = tonumber(had[1]), claim[4] - claim[3], tonumber(had[4])
    local ours = record[1] == root
    if ours and redis.call('HINCRBY', key, 'r:' .. owner, digits(-claim[3])) <= 0 then
        redis.call('HDEL', key, 'r:' .. owner)
    end
    -- The ledger was asked since: for a call that had ended by then, it has said what that has used. One that was under
    -- way was in it with what it could use.
    if not (ours and n == tonumber(had[3])) and (not granted or ended <= tonumber(had[2])) then
        if not ours or more > 0 then
            return
        end
        more = -math.min(-more, excess)
        redis.call('HSET', key, 'e', digits(excess + more))
    end
    redis.call('HSET', key, 't', digits(math.max(total + more, 0)))
end

for place, claim in ipairs(claims) do
    if claim[1] == SLIDING and record[place + 1] then
        settle_log(claim, record[place + 1])
    elseif claim[1] == CALENDAR and root then
        local at = record[place + 1]
        settle_sum(claim, at and at[1] or claim[5], at and at[2])
    end
end
return cmsgpack.pack({OK, now})
