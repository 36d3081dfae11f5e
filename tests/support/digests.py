"""The digests of erased identities, by a secret of tests."""

from __future__ import annotations

from services.auth.standing.digests import Digests

DIGESTS = Digests([b"a secret of tests"])
