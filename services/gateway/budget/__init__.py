"""Budgets: what a request may cost is reserved before it goes out, and what it did cost is settled exactly once."""
