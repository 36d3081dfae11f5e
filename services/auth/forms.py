"""Bodies that are forms (RFC 6749 appendix B)."""

from __future__ import annotations

from urllib.parse import parse_qsl

from aiohttp import web

from services.auth.errors import InvalidRequest

FORM = "application/x-www-form-urlencoded"
_MAX_FIELDS = 100
_MAY_REPEAT = ("audience", "resource")  # RFC 8693 section 2.1


async def read_form(request: web.Request) -> dict[str, list[str]]:
    """The parameters of a form body that are not empty.

    :raises InvalidRequest: not such a form, or a parameter that occurs twice and may not.
    """
    body = await request.read()  # first, since "too large" holds whatever the type
    if request.content_type != FORM:
        raise InvalidRequest(f"The body must be {FORM}.")
    try:
        text = body.decode()
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS) if text else []
    except (UnicodeDecodeError, ValueError) as error:
        raise InvalidRequest(f"The body is not well-formed {FORM}.") from error
    form: dict[str, list[str]] = {}
    for name, value in pairs:
        if name in form and name not in _MAY_REPEAT:
            raise InvalidRequest("A parameter occurs more than once.")
        form.setdefault(name, []).append(value)
    present = {name: [value for value in values if value] for name, values in form.items()}
    return {name: values for name, values in present.items() if values}
