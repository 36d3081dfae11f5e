"""What the handlers of auth find in their app."""

from aiohttp import web

from services.auth.challenge.services import Challenges
from services.auth.devices.services import Enrolment
from services.auth.exchange.services import TokenExchange
from services.auth.limits.services import Limits
from services.auth.settings import AuthSettings
from services.auth.tokens.issuer import Issuer
from services.auth.tokens.keys import KeyRing
from services.auth.tokens.revocation import Revocation

SETTINGS = web.AppKey("settings", AuthSettings)
CHALLENGES = web.AppKey("challenges", Challenges)
ENROLMENT = web.AppKey("enrolment", Enrolment)
EXCHANGE = web.AppKey("exchange", TokenExchange)
LIMITS = web.AppKey("limits", Limits)
KEY_RING = web.AppKey("key_ring", KeyRing)
ISSUER = web.AppKey("issuer", Issuer)
SCOPES = web.AppKey("scopes", list[str])
REVOCATION = web.AppKey("revocation", Revocation)
