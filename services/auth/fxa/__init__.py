"""FxA access tokens: who is asking, checked locally where that is possible, remembered in Redis.

``services.FxAVerifier`` is the way in; ``policy.check`` says what an identity may use.
"""
