-- Forget entries. How many of them there were.
--
-- {key, key, ...}
local removed = 0
for _, key in ipairs(ARGV) do
    removed = removed + remove(key)
end
return removed
