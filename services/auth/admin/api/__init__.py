"""The API of user management."""
