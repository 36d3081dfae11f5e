"""The gateway's client of Redis: scripts, at once and pipelined, on the server that holds their shard."""
