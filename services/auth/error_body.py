"""What all of auth's answers may be."""

from __future__ import annotations

import msgspec


class ErrorBody(msgspec.Struct, frozen=True):
    """RFC 6749 section 5.2."""

    error: str
    error_description: str
