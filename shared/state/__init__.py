"""A user's state in Redis: where it is, how it's written, and every script that reads or changes it."""
