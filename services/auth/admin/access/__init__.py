"""Who may manage users: keys, sessions of the console, and what is counted of those refused."""
