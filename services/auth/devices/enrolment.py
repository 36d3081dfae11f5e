"""Enrolment: verifying the attestation of a new key against one of our challenges, and storing it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from aiohttp import web

from services.auth.appattest.attestation import MAX_ATTESTATION_BYTES, verify_attestation
from services.auth.appattest.encoding import canonical_key_id, decode_base64, decode_key_id
from services.auth.appattest.errors import AppAttestError, Malformed
from services.auth.appattest.policy import Policy
from services.auth.challenge.services import Challenges
from services.auth.devices import storage
from services.auth.devices.metrics import DeviceMetrics, timed
from services.auth.errors import AccessDenied, AttestationRejected, InvalidRequest
from services.auth.limits.services import Limits, source
from shared.stores.postgres import Database

#: Longer than any challenge we issue; a longer one is refused as not ours rather than as malformed.
MAX_CHALLENGE_BYTES = 1024
MAX_CLAIMS = 32 * 1024

_Text = Annotated[str, msgspec.Meta(max_length=MAX_CLAIMS)]


class AttestRequest(msgspec.Struct, frozen=True):
    key_id_b64: _Text
    challenge_b64: _Text
    attestation_obj_b64: _Text
    bundle_id: Annotated[str, msgspec.Meta(max_length=256)]


class Enrolment:
    def __init__(
        self,
        database: Database,
        challenges: Challenges,
        policy: Policy,
        metrics: DeviceMetrics,
        limits: Limits,
        *,
        source_secret: bytes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """:param source_secret: makes the digests of sources, by which operators find what one source enrolled."""
        self._database, self._challenges, self._policy = database, challenges, policy
        self._metrics, self._limits = metrics, limits
        self._source_secret, self._clock = source_secret, clock

    async def enrol(self, claims: AttestRequest, address: str) -> None:
        """Verify and store a key; on return it is committed.

        :raises InvalidRequest: malformed base64 or CBOR.
        :raises InvalidChallenge: not ours, used or expired.
        :raises AttestationRejected: a step of the verification failed.
        :raises AccessDenied: the key is known and revoked.
        :raises SlowDown: too many keys of this source; the same can be sent again.
        :raises DependencyUnavailable: the key could not be stored; the same can be sent again.
        """
        with timed(self._metrics.attestation):
            await self._enrol(claims, address)

    async def _enrol(self, claims: AttestRequest, address: str) -> None:
        try:
            key_id = canonical_key_id(claims.key_id_b64)
            attestation_obj = decode_base64(claims.attestation_obj_b64, max_bytes=MAX_ATTESTATION_BYTES)
            challenge = decode_base64(claims.challenge_b64, max_bytes=MAX_CHALLENGE_BYTES)
        except AppAttestError as error:
            raise InvalidRequest("key_id_b64, challenge_b64 or attestation_obj_b64 is not valid base64.") from error
        with timed(self._metrics.challenge):
            self._challenges.check(challenge.decode("ascii", "replace"), key_id)
        try:
            # off the event loop: it takes one or two milliseconds, in which OpenSSL releases the GIL
            attestation = await asyncio.to_thread(
                verify_attestation,
                attestation_obj,
                client_data_hash=hashlib.sha256(challenge).digest(),
                key_id=decode_key_id(key_id),
                bundle_id=claims.bundle_id,
                policy=self._policy,
                now=datetime.fromtimestamp(self._clock(), UTC),
            )
        except Malformed as error:
            self._metrics.rejected(error)
            raise InvalidRequest("attestation_obj_b64 is not an attestation object.") from error
        except AppAttestError as error:
            self._metrics.rejected(error)
            raise AttestationRejected from error
        self._metrics.verified(attestation)
        sent = (attestation_obj, claims.bundle_id.encode())
        async with self._challenges.consumed(challenge.decode(), key_id, *sent) as use:
            await self._limits.take_source("enroll", address)
            stored = await storage.enrol(self._database, key_id, attestation, self._digest(address))
            if stored is storage.Stored.REFUSED:
                raise AccessDenied
            use.decided = stored is storage.Stored.NEW

    def _digest(self, address: str) -> str:
        return hmac.digest(self._source_secret, b"mlpa source v1\0" + source(address).encode(), "sha256").hex()[:32]


ENROLMENT = web.AppKey("enrolment", Enrolment)
