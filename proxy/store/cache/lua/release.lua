-- Give back a lease, if it is still the same one.
--
-- {key, lease}
release(ARGV[1], ARGV[2])
return 0
