"""Budgets: the worst case of a request is reserved before it goes out, and its charge is settled exactly once."""
