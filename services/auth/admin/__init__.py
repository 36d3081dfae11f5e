"""The admin console and the API of user management."""
