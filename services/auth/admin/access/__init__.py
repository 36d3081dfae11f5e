"""Access to user management: admin keys, sessions of the console, and the count of wrong keys."""
