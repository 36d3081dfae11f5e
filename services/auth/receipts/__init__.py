"""Receipts of App Attest keys, which Apple renews, with a count of the keys that the same device attested."""
