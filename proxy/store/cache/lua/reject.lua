-- Forget an entry that does not open, unless there is another one by now: `sha` is of what was read.
--
-- {key, sha} -> whether it was there
local value = read(ARGV[1])
if value and redis.sha1hex(value) == ARGV[2] then
    return remove(ARGV[1])
end
return 0
