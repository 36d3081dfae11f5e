"""The Lua scripts that decide about budgets; ``wire.Script`` reads them."""
