"""The domain of both services: users, service types, tokens and money."""
