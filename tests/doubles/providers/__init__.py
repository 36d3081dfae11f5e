"""Providers of models, as LiteLLM meets them: real HTTP servers in the wire formats of the providers.

Each refuses what its provider refuses, says the same things as the others (``behaviour.py``), and notes what arrived.
The docstring of a module says what it imitates, where that is written, and where it differs on purpose.
"""
