"""The App Attest credential: an assertion in which an enrolled key signs the request and a fresh challenge.

Order: parse, challenge's MAC and time, device, signature and all checks; at the very end of the exchange, consume the
challenge and advance the counter.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from functools import partial
from typing import Annotated, Any, ClassVar

import msgspec

from services.auth.appattest import (
    MAX_ASSERTION_BYTES,
    MAX_CLIENT_DATA_BYTES,
    AppAttestError,
    Assertion,
    Policy,
    canonical_key_id,
    decode_base64,
    parse_client_data,
    verify_assertion,
)
from services.auth.challenge.services import Challenges
from services.auth.devices import storage
from services.auth.devices.metrics import DeviceMetrics
from services.auth.errors import (
    AccessDenied,
    AuthError,
    InvalidChallenge,
    InvalidScope,
    InvalidSubjectToken,
    UnknownKey,
)
from services.auth.exchange.models import Subject, Words
from shared import strict_json
from shared.domain.identity import Credential
from shared.domain.service_types import ServiceType
from shared.stores.postgres import Database

_BASE64URL = re.compile(r"[A-Za-z0-9_-]+={0,2}")
_TYP = "mlpa-token-exchange"

_Text = Annotated[str, msgspec.Meta(max_length=2 * max(MAX_ASSERTION_BYTES, MAX_CLIENT_DATA_BYTES))]


class _SubjectToken(msgspec.Struct, frozen=True):
    key_id_b64: _Text
    assertion_obj_b64: _Text
    client_data_b64: _Text
    bundle_id: _Text


class AppAttestCredential:
    kind: ClassVar = Credential.APP_ATTEST
    words: ClassVar = Words(
        "base64url of a JSON object `{key_id_b64, assertion_obj_b64, client_data_b64, bundle_id}`",
        "an app on an enrolled device",
        "App Attest key id",
        "44 characters of base64",
    )

    def __init__(
        self, database: Database, challenges: Challenges, policy: Policy, issuer: str, metrics: DeviceMetrics
    ) -> None:
        self._database = database
        self._challenges = challenges
        self._policy = policy
        self._issuer = issuer
        self._metrics = metrics

    async def verify(self, subject_token: str, row: ServiceType, source: str) -> Subject:
        started = time.perf_counter()
        result = "unavailable"
        try:
            subject = await self._verify(subject_token, row)
            result = "success"
        except AuthError:
            result = "invalid"
            raise
        finally:
            self._metrics.assertion.observe(time.perf_counter() - started, result)
        return subject

    async def _verify(self, subject_token: str, row: ServiceType) -> Subject:
        token = _parse(subject_token)
        try:
            key_id = canonical_key_id(token.key_id_b64)
            assertion_obj = decode_base64(token.assertion_obj_b64, max_bytes=MAX_ASSERTION_BYTES)
            client_data = decode_base64(token.client_data_b64, max_bytes=MAX_CLIENT_DATA_BYTES)
            claims = parse_client_data(client_data)
        except AppAttestError as error:
            raise InvalidSubjectToken from error
        challenge = self._check_claims(claims, row)
        self._check_challenge(challenge, key_id)

        device = await storage.find(self._database, key_id)
        if device is None:
            raise UnknownKey
        # an imported device may lack both until its first assertion
        if device.bundle_id not in (None, token.bundle_id) or device.environment not in (
            None,
            self._policy.environment,
        ):
            raise InvalidSubjectToken
        try:
            assertion = verify_assertion(
                assertion_obj,
                client_data_hash=hashlib.sha256(client_data).digest(),
                public_key_x962=device.public_key,
                last_counter=device.counter,
                bundle_id=token.bundle_id,
                policy=self._policy,
            )
        except AppAttestError as error:
            self._metrics.rejected(error)
            raise InvalidSubjectToken from error
        self._metrics.verified(assertion)
        if row.bundle_ids is not None and token.bundle_id not in row.bundle_ids:
            raise InvalidScope
        if device.revoked:
            raise AccessDenied
        sent = (assertion_obj, client_data, token.bundle_id.encode())
        return Subject(
            identity=key_id,
            client_id=token.bundle_id,
            use_up=partial(self._use_up, challenge, key_id, assertion, sent),
        )

    async def _use_up(self, challenge: str, key_id: str, assertion: Assertion, sent: tuple[bytes, ...]) -> None:
        """Consume the challenge and advance the counter: of attempts that share one of them, one gets through."""
        try:
            async with self._challenges.consumed(challenge, key_id, *sent) as use:
                if not await storage.advance_counter(self._database, key_id, assertion, self._policy.environment):
                    raise InvalidSubjectToken
                use.decided = True  # a counter advances once
        except InvalidChallenge as error:
            raise InvalidSubjectToken from error

    def _check_claims(self, claims: dict[str, Any], row: ServiceType) -> str:
        """Check that the signed claims are for this issuer and scope, and return the challenge.

        :raises InvalidSubjectToken: they are for something else.
        """
        challenge = claims.get("challenge")
        meant = claims.get("typ") == _TYP and claims.get("aud") == self._issuer and claims.get("scope") == row.name
        if not meant or not isinstance(challenge, str):
            raise InvalidSubjectToken
        return challenge

    def _check_challenge(self, challenge: str, key_id: str) -> None:
        started = time.perf_counter()
        result = "invalid"
        try:
            self._challenges.check(challenge, key_id)
            result = "success"
        except InvalidChallenge as error:
            raise InvalidSubjectToken from error
        finally:
            self._metrics.challenge.observe(time.perf_counter() - started, result)


def _parse(subject_token: str) -> _SubjectToken:
    """Decode the subject token.

    :raises InvalidSubjectToken: it is malformed.
    """
    if not _BASE64URL.fullmatch(subject_token):
        raise InvalidSubjectToken
    try:
        raw = base64.b64decode(
            subject_token.rstrip("=") + "=" * (-len(subject_token.rstrip("=")) % 4), b"-_", validate=True
        )
        return strict_json.decode(raw, _SubjectToken)
    except ValueError as error:  # binascii.Error is one too
        raise InvalidSubjectToken from error
