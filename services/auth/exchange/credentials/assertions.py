"""App Attest assertions: the verification that all credential kinds with an assertion share.

Order: parse, challenge's MAC and time, device, signature and all checks; at the very end of the exchange, consume the
challenge and take the counter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, TypeVar

import msgspec

from services.auth.appattest.assertion import MAX_ASSERTION_BYTES, Assertion, verify_assertion
from services.auth.appattest.encoding import MAX_CLIENT_DATA_BYTES, canonical_key_id, decode_base64
from services.auth.appattest.errors import AppAttestError
from services.auth.appattest.policy import Policy
from services.auth.challenge.services import Challenges
from services.auth.devices import storage
from services.auth.devices.metrics import DeviceMetrics, Distrust, timed
from services.auth.devices.storage import FORGED
from services.auth.errors import (
    AccessDenied,
    DeviceNotTrusted,
    InvalidChallenge,
    InvalidScope,
    InvalidSubjectToken,
    UnknownKey,
    UnusedKey,
)
from services.auth.exchange.models import Subject
from shared.domain.service_types import ServiceType
from shared.domain.tokens import decode_segment
from shared.stores.postgres import Database

_BASE64URL = re.compile(r"[A-Za-z0-9_-]+={0,2}")

Text = Annotated[str, msgspec.Meta(max_length=2 * max(MAX_ASSERTION_BYTES, MAX_CLIENT_DATA_BYTES))]
_Token = TypeVar("_Token")


@dataclass(frozen=True, slots=True)
class Sent:
    """An assertion as a client sent it. It signs ``client_data_hash``.

    ``late_counters`` is the window of ``storage.advance_counter``. The last two fields are copied to the subject.
    """

    key_id_b64: str
    assertion_obj_b64: str
    bundle_id: str
    challenge: str
    client_data_hash: bytes
    late_counters: int = 0
    token_ttl: int | None = None
    body_sha256: str | None = None


class Assertions:
    """The verifier of assertions."""

    def __init__(
        self,
        database: Database,
        challenges: Challenges,
        policy: Policy,
        metrics: DeviceMetrics,
        *,
        unused_days: int = 0,
    ) -> None:
        """:param unused_days: days after which a key that was not used is refused; 0 = never."""
        self._unused = unused_days * 86_400 or math.inf
        self._database, self._challenges = database, challenges
        self._policy, self._metrics = policy, metrics

    async def verify(self, read: Callable[[], Sent], row: ServiceType) -> Subject:
        """Verify an assertion and the row's policy on it. Its challenge and counter are used up by the subject's
        ``use_up``.

        :param read: parses the subject token.
        :raises AuthError, DependencyUnavailable: as ``CredentialVerifier.verify``.
        """
        with timed(self._metrics.assertion):
            return await self._verify(read, row)

    async def _verify(self, read: Callable[[], Sent], row: ServiceType) -> Subject:
        try:
            sent = read()
            key_id = canonical_key_id(sent.key_id_b64)
            assertion_obj = decode_base64(sent.assertion_obj_b64, max_bytes=MAX_ASSERTION_BYTES)
        except AppAttestError as error:
            raise InvalidSubjectToken from error
        try:
            with timed(self._metrics.challenge):
                self._challenges.check(sent.challenge, key_id)
        except InvalidChallenge as error:
            raise InvalidSubjectToken from error

        device = await storage.find(self._database, key_id)
        if device is None:
            raise UnknownKey
        # an imported device may lack both until its first assertion
        if device.bundle_id not in (None, sent.bundle_id) or device.environment not in (None, self._policy.environment):
            raise InvalidSubjectToken
        try:
            assertion = verify_assertion(
                assertion_obj,
                client_data_hash=sent.client_data_hash,
                public_key_x962=device.public_key,
                last_counter=max(0, device.counter - sent.late_counters),
                bundle_id=sent.bundle_id,
                policy=self._policy,
            )
        except AppAttestError as error:
            self._metrics.rejected(error)
            raise InvalidSubjectToken from error
        self._metrics.verified(assertion)
        if row.bundle_ids is not None and sent.bundle_id not in row.bundle_ids:
            raise InvalidScope
        if device.revoked:
            raise AccessDenied
        self._check_trust(device, assertion, row)
        return Subject(
            identity=key_id,
            client_id=sent.bundle_id,
            use_up=partial(
                self._use_up,
                sent.challenge,
                key_id,
                assertion,
                sent.late_counters,
                (assertion_obj, sent.client_data_hash, sent.bundle_id.encode()),
            ),
            token_ttl=sent.token_ttl,
            body_sha256=sent.body_sha256,
        )

    def _check_trust(self, device: storage.Device, assertion: Assertion, row: ServiceType) -> None:
        """
        :raises UnusedKey: nobody has used the key for long.
        :raises DeviceNotTrusted: the row demands more of a device.
        """
        reported = assertion.launch.validation_category
        category = device.validation_category if reported is None else reported
        if device.idle > self._unused:
            refusal = Distrust.UNUSED
        elif row.validation_categories and category is not None and category not in row.validation_categories:
            refusal = Distrust.CATEGORY
        elif row.max_risk_metric and device.receipt_fault == FORGED:
            refusal = Distrust.RECEIPT
        elif row.max_risk_metric and (device.risk_metric or 0) > row.max_risk_metric:
            refusal = Distrust.RISK
        else:
            return
        self._metrics.distrusted(refusal)
        raise UnusedKey if refusal is Distrust.UNUSED else DeviceNotTrusted

    async def _use_up(
        self, challenge: str, key_id: str, assertion: Assertion, late_counters: int, sent: tuple[bytes, ...]
    ) -> None:
        """Consume the challenge and take the counter: of attempts that share one of them, one gets through."""
        try:
            async with self._challenges.consumed(challenge, key_id, *sent) as use:
                taken = await storage.advance_counter(
                    self._database, key_id, assertion, self._policy.environment, window=late_counters
                )
                if not taken:
                    raise InvalidSubjectToken
                use.decided = True  # a counter is taken once
        except InvalidChallenge as error:
            raise InvalidSubjectToken from error


def decode_subject_token(subject_token: str, kind: type[_Token]) -> _Token:
    """A subject token that is base64url of a JSON object.

    :raises InvalidSubjectToken: it is malformed.
    """
    if not _BASE64URL.fullmatch(subject_token):
        raise InvalidSubjectToken
    try:
        return decode_segment(subject_token.rstrip("="), kind)
    except ValueError as error:
        raise InvalidSubjectToken from error
