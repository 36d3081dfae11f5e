"""Events of accounts, as FxA delivers them."""
