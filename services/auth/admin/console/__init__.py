"""The pages of the console, rendered on the server: no scripts."""
