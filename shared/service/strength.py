"""The strength that a secret needs outside ``MLPA_DEBUG``: a part of its setting's declaration.

``Secret`` and ``AdminSecret`` are the types to declare one with. The strength of a key that is only known by its digest
can't be measured, but the digests of obvious keys can be refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import SecretStr

#: The start of every development secret, so that none is mistaken for one of production.
DEVELOPMENT = "development-"

#: Words written in place of a key: by hand, or by a command whose variable was not set.
_TRIVIAL = (
    *("", "0", "1", "-", ".", "x", "a", "null", "none", "nil", "undefined", "true", "false", "...", "***"),
    *("key", "admin", "admin_key", "admin-key", "adminkey", "mlpa_admin_key", "mlpa_admin_keys", "mlpa_ui_access_key"),
    *("ui", "viewer", "root", "user", "alice", "bob", "grafana", "operator", "console", "mlpa", "mozilla", "firefox"),
    *("secret", "password", "passwd", "pass", "token", "letmein", "welcome", "qwerty", "default", "guest", "login"),
    *("test", "testing", "dev", "development", "demo", "example", "sample", "foo", "bar", "foobar", "dummy", "todo"),
    *("changeme", "change-me", "change_me", "replaceme", "replace-me", "your-key", "your_key", "yourkey", "here"),
    *("123", "1234", "12345", "123456", "1234567", "12345678", "123456789", "1234567890", "password1", "admin123"),
)


@dataclass(frozen=True, slots=True)
class Strength:
    """The fewest characters of a secret. ``listed``: of each part of a comma-separated one."""

    characters: int
    listed: bool = False

    def fault(self, secret: str) -> str | None:
        """The fault of a secret, without quoting it; None if there is none."""
        parts = [part.strip() for part in (secret.split(",") if self.listed else [secret])]
        for part in filter(None, parts) if self.listed else parts:
            if part.startswith(DEVELOPMENT):
                return "is a value of development, which anybody can read"
            if len(part) < self.characters:
                where = " in each part of its list" if self.listed else ""
                return f"must have at least {self.characters} characters{where}, at random: openssl rand -hex 32"
        return None


#: An HMAC key or a shared secret of our own.
Secret = Annotated[SecretStr | None, Strength(32)]
#: The same, as a comma-separated list, so that it can be rotated.
SecretList = Annotated[SecretStr | None, Strength(32, listed=True)]
#: A key that a person presents.
AdminSecret = Annotated[SecretStr | None, Strength(16)]


def trivial_digests(words: Iterable[str] = ()) -> frozenset[bytes]:
    """SHA-256 of obvious keys.

    :param words: further obvious words, such as the names of the keys.
    """
    spellings = {
        spelling
        for word in (*_TRIVIAL, *words)
        for plain in {word, word.lower(), word.upper(), word.capitalize()}
        # with the line end that ``echo`` adds, as a variable that single quotes kept, and as a document's placeholder
        for form in (plain, f"${plain}", f"${{{plain}}}", f"<{plain}>", f'"{plain}"', f"'{plain}'", f"{plain} ")
        for spelling in (form, f"{form}\n", f"{form}\r\n")
    }
    return frozenset(hashlib.sha256(spelling.encode()).digest() for spelling in spellings)
