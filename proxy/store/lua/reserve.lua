-- Checks every claim, then reserves all of them or none; without a call it answers the same and reserves nothing.
--
-- {owner, root, call, {{SLIDING, counter, limit, amount, shadow, span}
--                      {CALENDAR, counter, limit, amount, shadow, start, end = start, end = start, end}
--                      {SLOTS, counter, limit, amount, shadow}, ...}}
-- -> {OK or REFUSED, now, used, reserved, reset, wait or -1 (never), ... for each claim}
--    {NO_LEASE, now}                      this worker has to say first that it lives, and which slots it holds
--    {OTHER_PERIOD, now}                  none of the periods of a claim holds now
--    {ABSENT, now, place, start, held, ...}   these calendar counters have to be made first, or, where `held` is 1, are
--                                         being counted anew
--    {KNOWN, now}                         this call was reserved or settled before
local owner, call, claims = arg[1], arg[3], arg[4]
if not root or root ~= arg[2] or not alive(owner) then
    return cmsgpack.pack({NO_LEASE, now})
end
if call and redis.call('EXISTS', call_key(call)) == 1 then
    return cmsgpack.pack({KNOWN, now})
end

local look = {}

look[SLIDING] = function(claim)
    local entries = read_log(claim[2], claim[6])
    local total, reserved = 0, 0
    for _, entry in ipairs(entries) do
        total = total + entry[3]
        for i = #entry - 1, 4, -2 do
            if alive(entry[i]) then
                reserved = reserved + entry[i + 1]
            else
                table.remove(entry, i)
                table.remove(entry, i)
            end
        end
    end
    return {entries = entries, total = total, reserved = reserved}
end

look[CALENDAR] = function(claim)
    for i = 6, #claim - 1 do
        if claim[i] <= now and now < claim[i + 1] then
            local found = {start = claim[i], stop = claim[i + 1], reserved = 0}
            local fields = redis.call('HGETALL', sum_key(claim[2], found.start))
            for j = 1, #fields, 2 do
                local name, value = fields[j], tonumber(fields[j + 1])
                if name == 't' then
                    found.total = value
                elseif name == 'n' then
                    found.asked_ledger = value
                elseif string.sub(name, 1, 2) == 'r:' then
                    if alive(string.sub(name, 3)) then
                        found.reserved = found.reserved + value
                    else
                        redis.call('HDEL', sum_key(claim[2], found.start), name)
                    end
                elseif string.sub(name, 1, 2) == 'h:' then
                    if value > now then
                        found.held = true
                    else
                        redis.call('HDEL', sum_key(claim[2], found.start), name)
                    end
                end
            end
            return found
        end
    end
    return nil
end

look[SLOTS] = function(claim)
    local total, busy = 0, busy_key(claim[2])
    for _, one in ipairs(redis.call('SMEMBERS', busy)) do
        if alive(one) then
            total = total + redis.call('SCARD', slots_key(claim[2], one))
        else
            redis.call('DEL', slots_key(claim[2], one))
            redis.call('SREM', busy, one)
        end
    end
    return {total = total, reserved = total}
end

-- One state for each counter, however many claims are made on it.
local states, of, absent = {}, {}, {ABSENT, now}
for place, claim in ipairs(claims) do
    local state = states[claim[2]]
    if not state then
        state = look[claim[1]](claim)
        if not state then
            return cmsgpack.pack({OTHER_PERIOD, now})
        end
        if state.held or not state.total then
            absent[#absent + 1] = place - 1
            absent[#absent + 1] = state.start
            absent[#absent + 1] = state.held and 1 or 0
        end
        state.asked = 0
        states[claim[2]] = state
    end
    of[place] = state
end
if #absent > 2 then
    return cmsgpack.pack(absent)
end

-- Milliseconds until `more` of a sliding counter does not count any more.
local function until_free(entries, span, more)
    for _, entry in ipairs(entries) do
        more = more - entry[3]
        if more <= 0 then
            return entry[2] + span - now
        end
    end
    return -1
end

local function wait(claim, state)
    local more = state.total + state.asked + claim[4] - claim[3]
    if more <= 0 or claim[4] == 0 then -- nothing always fits
        return 0
    elseif claim[4] > claim[3] then
        return -1
    elseif claim[1] == SLOTS then
        return SLOT_WAIT
    elseif claim[1] == CALENDAR then
        return state.stop - now
    end
    return until_free(state.entries, claim[6], more)
end

local granted, waits = OK, {}
for place, claim in ipairs(claims) do
    waits[place] = wait(claim, of[place])
    of[place].asked = of[place].asked + claim[4]
    if waits[place] ~= 0 and not claim[5] then
        granted = REFUSED
    end
end

local take = {}

take[SLIDING] = function(claim, state)
    local entry = push(state.entries, claim[6], claim[4])
    hold(entry, owner, claim[4])
    write_log(claim[2], claim[6], state.entries)
    return entry[1]
end

take[CALENDAR] = function(claim, state)
    local key = sum_key(claim[2], state.start)
    redis.call('HINCRBY', key, 't', digits(claim[4]))
    redis.call('HINCRBY', key, 'r:' .. owner, digits(claim[4]))
    return {state.start, state.asked_ledger}
end

take[SLOTS] = function(claim)
    take_slots(claim[2], owner, call, claim[4])
    return 0
end

if granted == OK then
    local record = {root}
    for place, claim in ipairs(claims) do
        local state = of[place]
        if call then
            record[place + 1] = take[claim[1]](claim, state)
        elseif claim[1] == SLIDING then
            push(state.entries, claim[6], claim[4]) -- which nobody writes back
        end
        state.total = state.total + claim[4]
        state.reserved = state.reserved + claim[4]
    end
    if call then
        redis.call('SET', call_key(call), cmsgpack.pack(record), 'PX', RECORD_MS)
    end
end

local function reset(claim, state)
    if state.total == 0 or claim[1] == SLOTS then
        return 0
    elseif claim[1] == CALENDAR then
        return state.stop - now
    end
    for i = #state.entries, 1, -1 do
        if state.entries[i][3] > 0 then
            return state.entries[i][2] + claim[6] - now
        end
    end
    return 0
end

local answer = {granted, now}
for place, claim in ipairs(claims) do
    local state = of[place]
    answer[#answer + 1] = state.total - state.reserved
    answer[#answer + 1] = state.reserved
    answer[#answer + 1] = reset(claim, state)
    answer[#answer + 1] = waits[place]
end
return cmsgpack.pack(answer)
