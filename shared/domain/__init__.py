"""What both services mean by a user, a service type, a token and money."""
