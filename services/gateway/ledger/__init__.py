"""The work behind budgets: what was admitted is kept alive, settled, and written to the ledger exactly once."""
