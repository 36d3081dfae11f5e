"""Protection against forms that another site submits: a token in every form, and the browser's ``Sec-Fetch-Site``."""

from __future__ import annotations

import hmac
import secrets

from aiohttp import web

from services.auth.admin.access import cookies
from services.auth.errors import Forbidden

FIELD = "csrf"
_LENGTH = 43


class ForeignForm(Forbidden):
    message = "The form did not come from this console, or its session has changed. Go back, reload and try again."


def sign_in_token(request: web.Request) -> str:
    """The token of a browser without a session: from its cookie, or a new one."""
    held = cookies.read(request, cookies.SIGN_IN)
    return held if len(held) == _LENGTH and held.isascii() else secrets.token_urlsafe(32)


def check(request: web.Request, given: str, expected: str) -> None:
    """Check that a form is from a page of ours.

    :param given: the form's token.
    :raises ForeignForm: it is not.
    """
    # Sec-Fetch-Site can't be forged by a page; old browsers don't send it
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        raise ForeignForm
    # "replace": a cookie may hold bytes that are not UTF-8
    if not expected or not hmac.compare_digest(given.encode(errors="replace"), expected.encode(errors="replace")):
        raise ForeignForm
