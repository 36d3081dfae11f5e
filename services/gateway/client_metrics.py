"""Requests by country and version of Firefox, as the proxy in front and the browser report them."""

from __future__ import annotations

import re
from collections.abc import Container

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from services.gateway.relay.views import MODEL
from shared.service.proxies import PROXIES, UNKNOWN
from shared.service.web import SERVICE_TYPE
from shared.telemetry.metrics import Registry

COUNTRY_FIELD = "X-Geo-Country"
_FIREFOX = re.compile(r"\bFirefox/(1[0-9]{2})\b")
#: ISO 3166-1 alpha-2, officially assigned.
_ASSIGNED = (
    "AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY "
    "BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK "
    "FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR "
    "IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK "
    "ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM "
    "PN PR PS PT PW PY QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF "
    "TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW"
)
COUNTRIES = frozenset(_ASSIGNED.split())
_OTHER = ("other",) * 4


def counting(registry: Registry, paths: Container[str], most: int) -> Middleware:
    """The middleware that counts requests of these paths.

    :param most: the number of series beyond which further ones are counted as one.
    """
    requests = registry.counter(
        "client_requests_total",
        "Requests by the client's country and version of Firefox.",
        ("service_type", "model", "country", "firefox_version"),
    )
    seen: set[tuple[str, ...]] = set()

    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        finally:
            if request.path in paths:
                labels = (
                    request.get(SERVICE_TYPE, "none"),
                    request.get(MODEL, "other"),
                    country(request),
                    firefox_version(request.headers.get("User-Agent", "")),
                )
                if labels not in seen:
                    if len(seen) < most:
                        seen.add(labels)
                    else:
                        labels = _OTHER
                requests.inc(*labels)

    return count


def country(request: web.Request) -> str:
    """The client's country, if a trusted proxy names a real one."""
    given = request.headers.getall(COUNTRY_FIELD, [])
    if len(given) == 1 and given[0] in COUNTRIES and request.app[PROXIES].forwarded(request):
        return given[0]
    return UNKNOWN


def firefox_version(user_agent: str) -> str:
    found = _FIREFOX.search(user_agent)
    return found[1] if found else UNKNOWN
