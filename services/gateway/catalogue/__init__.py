"""The models that LiteLLM serves: which may be asked, what they cost, and how clients see them."""
