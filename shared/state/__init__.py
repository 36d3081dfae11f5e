"""A user's state in Redis: its keys, its formats, and every script that reads or changes it."""
