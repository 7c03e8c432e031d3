-- Write something, at most once a second however often it is asked for; an error where the server takes no writes.
-- KEYS: the probe
redis.call('SET', KEYS[1], '', 'NX', 'PX', '1000')
return 1
