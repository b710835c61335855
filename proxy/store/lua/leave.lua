-- A worker ends: what it holds of slots is free at once.
--
-- {owner}
redis.call('DEL', lease_key(arg[1]))
redis.call('ZREM', prefix .. 'peers', arg[1])
return cmsgpack.pack({OK, now})
