"""PostgreSQL and Redis: connections, faults, the schema and its migrations."""
