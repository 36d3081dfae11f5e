"""Users as customers of LiteLLM, whose budgets there limit the damage if a gateway fails."""
