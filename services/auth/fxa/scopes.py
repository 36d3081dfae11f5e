"""FxA's rules of scopes that imply others (``docs/oauth/scopes.md`` of FxA's authorization server).

- A short name implies itself and all below it: ``profile`` implies ``profile:uid``. A trailing ``:write``
  asks for writing; it implies reading the same, and nothing else implies writing.
- A URL implies itself and all below its path: ``https://x/apps`` implies ``https://x/apps/sync``. With a fragment,
  only what has that fragment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_WRITE = "write"
#: FxA issues no URL without a path; without this, one such scope would imply a whole host, or every URL.
_URL = re.compile(r"https://[^/#]+(/[^/#]+)+(#[^#]+)?")


def satisfies(provided: Sequence[str], required: Iterable[str]) -> bool:
    """Whether each required scope is implied by one that the token has. No required scope: true."""
    return all(any(_implies(have, need) for have in provided) for need in required)


def _implies(have: str, need: str) -> bool:
    if have.startswith("https:") or need.startswith("https:"):
        return _url_implies(have, need)
    have_names, have_write = _short(have)
    need_names, need_write = _short(need)
    if not have_names or (need_write and not have_write):  # ``write`` alone is not a scope
        return False
    return need_names[: len(have_names)] == have_names


def _short(scope: str) -> tuple[list[str], bool]:
    names = scope.split(":")
    write = names[-1] == _WRITE
    return (names[:-1] if write else names), write


def _url_implies(have: str, need: str) -> bool:
    if not _URL.fullmatch(have) or not need.startswith("https:"):
        return False
    have_url, _, have_fragment = have.partition("#")
    need_url, _, need_fragment = need.partition("#")
    if have_fragment and have_fragment != need_fragment:
        return False
    return need_url == have_url or need_url.startswith(have_url + "/")
