"""What the handlers of auth find in their app."""

from aiohttp import web

from services.auth.admin.access.admin_keys import AdminKeys
from services.auth.admin.access.sessions import Sessions
from services.auth.admin.access.wrong_keys import WrongKeys
from services.auth.admin.console.assets import Assets
from services.auth.admin.console.overview import Overviews
from services.auth.audit.refusals import Refusals
from services.auth.challenge.services import Challenges
from services.auth.devices.enrolment import Enrolment
from services.auth.devices.operators import DeviceAdmin
from services.auth.exchange.services import TokenExchange
from services.auth.limits.services import Limits
from services.auth.settings import AuthSettings
from services.auth.tokens.key_ring import KeyRing
from services.auth.tokens.revocation import Revocation
from services.auth.usage.services import Usage
from services.auth.users.operators import UserAdmin
from services.auth.users.spending import Spending
from shared.postgres import Database
from shared.service_types import ServiceTypes

SETTINGS = web.AppKey("settings", AuthSettings)
CHALLENGES = web.AppKey("challenges", Challenges)
ENROLMENT = web.AppKey("enrolment", Enrolment)
EXCHANGE = web.AppKey("exchange", TokenExchange)
LIMITS = web.AppKey("limits", Limits)
KEY_RING = web.AppKey("key_ring", KeyRing)
SCOPES = web.AppKey("scopes", list[str])
REVOCATION = web.AppKey("revocation", Revocation)

# The API of user management and the console
ADMIN_KEYS = web.AppKey("admin_keys", AdminKeys)
ASSETS = web.AppKey("assets", Assets)
DATABASE = web.AppKey("database", Database)
DEVICE_ADMIN = web.AppKey("device_admin", DeviceAdmin)
OVERVIEWS = web.AppKey("overviews", Overviews)
REFUSALS = web.AppKey("refusals", Refusals)
SERVICE_TYPES = web.AppKey("service_types", ServiceTypes)
SESSIONS = web.AppKey("sessions", Sessions)
SPENDING = web.AppKey("spending", Spending)
USAGE = web.AppKey("usage", Usage)
USER_ADMIN = web.AppKey("user_admin", UserAdmin)
WRONG_KEYS = web.AppKey("wrong_keys", WrongKeys)
