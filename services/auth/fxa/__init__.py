"""Verification of FxA access tokens: locally where possible, with results cached in Redis.

``services.FxAVerifier`` verifies; ``policy.check`` decides what an identity may use.
"""
