"""Users as customers of LiteLLM, with a budget there that contains the damage should a gateway fail."""
