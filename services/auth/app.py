"""The assembly of the auth service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from aiohttp import web
from cryptography.hazmat.primitives import hashes
from pydantic import SecretStr

from services.auth import bodies
from services.auth.admin import app as admin
from services.auth.admin.access import wrong_keys
from services.auth.admin.access.admin_keys import AdminKeys
from services.auth.admin.console.pages import render_error
from services.auth.appattest.policy import Policy, apple_root_pem, load_roots
from services.auth.challenge.services import CHALLENGES, Challenges
from services.auth.connections import Connections, open_connections
from services.auth.devices import views as device_views
from services.auth.devices.enrolment import ENROLMENT, Enrolment
from services.auth.devices.metrics import DeviceMetrics
from services.auth.devices.sources import EnrollingSources
from services.auth.erasure.export import EXPORTS, Exports
from services.auth.erasure.services import ERASURES, Erasures
from services.auth.errors import ErrorBody
from services.auth.events import views as event_views
from services.auth.events.services import FXA_EVENTS, FxAEvents
from services.auth.exchange import play_views, views as exchange_views
from services.auth.exchange.credentials.app_attest import AppAttestCredential
from services.auth.exchange.credentials.app_attest_request import AppAttestRequestCredential
from services.auth.exchange.credentials.assertions import Assertions
from services.auth.exchange.credentials.fxa import FxACredential
from services.auth.exchange.credentials.play import LIMIT as PLAY_LIMIT, PlayCredential
from services.auth.exchange.gateways import KNOWN_GATEWAYS, KnownGateways
from services.auth.exchange.models import CredentialVerifier
from services.auth.exchange.services import EXCHANGE, TokenExchange
from services.auth.fxa.models import FxAConfig
from services.auth.fxa.services import FxAVerifier
from services.auth.health import health
from services.auth.limits.services import LIMITS, Limits
from services.auth.play.google import Load, PlayIntegrity, credentials_of
from services.auth.play.metrics import PlayMetrics
from services.auth.play.verdict import Policy as PlayPolicy
from services.auth.provisioning.client import LiteLLMAdmin
from services.auth.provisioning.services import Provisioner
from services.auth.settings import SERVICE_TYPES, SETTINGS, AuthSettings
from services.auth.standing.changes import Changes
from services.auth.standing.digests import Digests
from services.auth.tokens import views as token_views
from services.auth.tokens.issuer import Issuer
from services.auth.tokens.key_ring import KEY_RING, KeyRing, ensure_key
from services.auth.tokens.revocation import REVOCATION, Revocation
from services.auth.usage.age import LedgerAge
from services.auth.usage.old_refusals import OldRefusals
from services.auth.users.entry import Users
from shared.domain.identity import Credential
from shared.domain.service_types import ConfigurationError, ServiceTypes
from shared.service.app import Apps, ServiceDescription, build_apps
from shared.service.ops import HEALTH
from shared.service.protocol import ServiceSite
from shared.service.service_types_file import SERVICE_TYPES_FILE
from shared.stores.dependency import Dependency
from shared.stores.postgres import Database
from shared.stores.redis import Client
from shared.telemetry import logs
from shared.telemetry.metrics import Registry

_log = logs.logger("auth")

#: Firefox for iOS sends its attestation, base64 in base64, in a header: about 11 KB.
MAX_FIELD = 40 * 1024
MAX_HEAD = 64 * 1024
_JOB_SECONDS = 30.0

DESCRIPTION = ServiceDescription(
    name="auth",
    title="MLPA auth",
    description="Enrols App Attest devices, and exchanges a device's assertion, a Play integrity token or an FxA token "
    "for an access token of the gateway.",
    operations=[
        *device_views.OPERATIONS,
        *play_views.OPERATIONS,
        *exchange_views.OPERATIONS,
        *token_views.OPERATIONS,
        *event_views.OPERATIONS,
    ],
    internal=admin.OPERATIONS,
    error_body=ErrorBody,
    security_schemes={
        "admin_key": {"type": "http", "scheme": "bearer", "description": "A key of MLPA_ADMIN_KEYS, or the like."},
        "security_event": {"type": "http", "scheme": "bearer", "description": "A Security Event Token of FxA's."},
    },
    render_error=render_error,
    make_site=lambda runner, sock, frame, settings: ServiceSite(
        runner, sock, frame, max_body=settings.max_auth_request_size_bytes, max_head=MAX_HEAD, max_field=MAX_FIELD
    ),
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """The files that are read and checked before a connection opens, so that a bad file stops the start."""

    service_types: ServiceTypes
    key_ring: KeyRing
    policy: Policy
    google: Load
    admin_keys: AdminKeys


def prepare(settings: AuthSettings) -> Prepared:
    """:raises ConfigurationError: naming the variable or file."""
    service_types = settings.load_service_types()
    admin_keys = AdminKeys.from_settings(settings)
    folder = settings.mlpa_signing_keys_dir
    assert folder is not None
    if settings.mlpa_debug:
        ensure_key(folder)
    return Prepared(service_types, KeyRing(folder), _policy(settings), _google(settings, service_types), admin_keys)


def _policy(settings: AuthSettings) -> Policy:
    path = settings.app_attest_root_ca
    try:
        roots = load_roots(path.read_bytes() if path else apple_root_pem())
    except OSError as error:
        raise ConfigurationError(f"APP_ATTEST_ROOT_CA: {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"APP_ATTEST_ROOT_CA: {path}: {error}") from error
    if path and roots != load_roots(apple_root_pem()):
        fingerprints = [root.fingerprint(hashes.SHA256()).hex(":").upper() for root in roots]
        _log.warning("app_attest_root_is_not_apples", sha256=", ".join(fingerprints))
    if not settings.app_attest_production and not settings.mlpa_debug:
        _log.warning("app_attest_takes_development_keys")
    return Policy(
        team_id=settings.app_development_team,
        bundle_ids=frozenset(settings.app_attest_bundle_ids),
        environment="production" if settings.app_attest_production else "development",
        roots=roots,
    )


def _google(settings: AuthSettings, service_types: ServiceTypes) -> Load:
    rows = [row.name for row in service_types.by_name.values() if Credential.PLAY in row.credentials]
    if rows and not settings.play_packages and not settings.mlpa_debug:
        _log.warning("play_has_no_packages", service_types=rows)
    try:
        return credentials_of(settings.play_credentials)
    except OSError as error:
        raise ConfigurationError(f"PLAY_CREDENTIALS: {settings.play_credentials}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"PLAY_CREDENTIALS: {settings.play_credentials}: {error}") from error


def build_app(settings: AuthSettings, *, registry: Registry | None = None) -> Apps:
    """The apps of auth; resources open when they start and close when they end.

    :raises ConfigurationError: a file named in the settings can't be used.
    """
    registry = registry or Registry()
    prepared = prepare(settings)
    service = DESCRIPTION if prepared.admin_keys else replace(DESCRIPTION, internal=[])
    apps = build_apps(
        settings,
        registry,
        service,
        max_body=settings.max_auth_request_size_bytes,
        service_types=prepared.service_types,
        admin_port=settings.admin_port,
    )
    if prepared.admin_keys:
        admin.install(apps, prepared.admin_keys)
    for app in apps.all:
        app.middlewares.append(bodies.read_first)
    apps.put(SETTINGS, settings)
    apps.put(KEY_RING, prepared.key_ring)
    apps.put(SERVICE_TYPES, prepared.service_types)

    async def resources(_app: web.Application) -> AsyncIterator[None]:
        async with open_connections(settings, registry) as connections, AsyncExitStack() as stack:
            await _open(stack, apps, settings, prepared, connections)
            yield

    apps.main.cleanup_ctx.append(resources)
    return apps


async def _open(
    stack: AsyncExitStack, apps: Apps, settings: AuthSettings, prepared: Prepared, connections: Connections
) -> None:
    database, redis = connections.database, connections.redis
    session, registry, types = connections.session, connections.registry, prepared.service_types
    fxa_config = FxAConfig.from_settings(settings)
    fxa = await stack.enter_async_context(FxAVerifier.open(fxa_config, redis=redis, session=session, registry=registry))
    metrics = DeviceMetrics(registry)
    challenges = Challenges(settings.challenge_secrets(), lifetime=settings.challenge_expiry_seconds, redis=redis)
    limits = _limits(settings, redis, registry)
    issuer = Issuer(prepared.key_ring, issuer=settings.mlpa_issuer, ttl=settings.mlpa_access_token_ttl_seconds)
    litellm: LiteLLMAdmin | None = None
    provisioner: Provisioner | None = None
    if settings.litellm_provision_users and settings.master_key is not None:
        litellm = LiteLLMAdmin(session, settings.litellm_api_base, settings.master_key.get_secret_value())
        provisioner = Provisioner(litellm, database, types, registry, factor=settings.litellm_budget_factor)
    digests = Digests(settings.erasure_secrets())
    users = Users(database, redis, registry, digests, on_entry=provisioner.entered if provisioner else None)
    changes = Changes(database, redis, registry)
    jobs = await _jobs(stack, settings.database_url, database.state)
    rows = await _jobs(stack, settings.litellm_database_url) if settings.litellm_database_url else None
    erasures = Erasures(
        *(database, jobs, redis, types, digests, registry), purge_fxa=fxa.purge, litellm=litellm, litellm_rows=rows
    )
    clients = frozenset(settings.fxa_client_ids)
    events = FxAEvents(
        *(database, fxa, changes, erasures, digests, registry), issuer=fxa_config.issuer, client_ids=clients
    )
    readers = LedgerAge(database, registry), EnrollingSources(database, types, registry)
    for work in (users, provisioner, changes, erasures, events, *readers, OldRefusals(database, registry)):
        if work is not None:
            await stack.enter_async_context(work.running())
    await stack.enter_async_context(prepared.key_ring.running(registry))
    assertions = Assertions(database, challenges, prepared.policy, metrics, unused_days=settings.device_unused_days)
    play_metrics = PlayMetrics(registry)
    google = await stack.enter_async_context(
        PlayIntegrity.open(session, settings.play_base_url, prepared.google, metrics=play_metrics)
    )
    play_policy = PlayPolicy(
        packages=frozenset(settings.play_packages),
        certificates=frozenset(settings.play_certificates),
        max_age=settings.play_max_age_seconds,
        testing=settings.mlpa_debug,
    )
    credentials: list[CredentialVerifier] = [
        FxACredential(fxa),
        AppAttestCredential(assertions, settings.mlpa_issuer),
        AppAttestRequestCredential(assertions),
        PlayCredential(google, play_policy, limits, redis, play_metrics, token_ttl=settings.play_token_ttl_seconds),
    ]
    apps.put(ERASURES, erasures)
    apps.put(EXPORTS, Exports(database, jobs, redis, types, read_fxa=fxa.held))
    apps.put(CHALLENGES, challenges)
    apps.put(LIMITS, limits)
    secret = settings.challenge_secrets()[0]
    apps.put(ENROLMENT, Enrolment(database, challenges, prepared.policy, metrics, limits, source_secret=secret))
    apps.put(KNOWN_GATEWAYS, KnownGateways(settings.exchange_keys()))
    apps.put(EXCHANGE, TokenExchange(credentials, types, users, issuer, limits, registry))
    apps.put(FXA_EVENTS, events)
    apps.put(REVOCATION, Revocation(issuer, database, changes, digests))
    readiness = health(prepared.key_ring, connections, fxa, apps.main[SERVICE_TYPES_FILE])
    apps.put(HEALTH, readiness)
    if prepared.admin_keys:
        await admin.open_admin(
            *(stack, apps, connections),
            changes=changes,
            health=readiness,
            limits=limits,
            rejections={"App Attest": metrics.by_step, "Play Integrity": play_metrics.by_step},
            on_tier=provisioner.changed if provisioner else None,
        )


def _limits(settings: AuthSettings, redis: Client, registry: Registry) -> Limits:
    return Limits(
        redis,
        registry,
        kinds={
            "identity": settings.exchange_limit_per_identity,
            PLAY_LIMIT: settings.play_limit_per_source,
            wrong_keys.LIMIT: settings.sign_in_limit_per_source,
        },
        doors={
            "challenge": settings.challenge_limit_per_source,
            "enroll": settings.enroll_limit_per_source,
            "exchange": settings.exchange_limit_per_source,
            "revoke": settings.revoke_limit_per_source,
        },
        refusals={event_views.DOOR: settings.fxa_events_limit_per_source},
    )


async def _jobs(stack: AsyncExitStack, url: SecretStr, state: Dependency | None = None) -> Database:
    """A connection for background work, whose statements may take long."""
    connecting = Database.connect(url.get_secret_value(), max_size=1, timeout=_JOB_SECONDS, state=state)
    return await stack.enter_async_context(connecting)
