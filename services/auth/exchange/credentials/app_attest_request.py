"""An App Attest assertion over the body of one request to a gateway, as released versions of Firefox for iOS make it.

The challenge is not signed: it only comes with the assertion. The counter, which is signed and accepted once, prevents
a second use. Requests that are made at the same time arrive in any order, so a counter is accepted while it is close to
the highest one. The body's digest comes from the gateway, which has seen the body; so the access token is good for that
body alone.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from services.auth.appattest.encoding import decode_base64
from services.auth.devices.storage import LATE_COUNTERS
from services.auth.errors import InvalidSubjectToken
from services.auth.exchange.credentials.app_attest import AppAttestCredential
from services.auth.exchange.credentials.assertions import Assertions, Sent, Text, decode_subject_token
from services.auth.exchange.models import Subject, Words
from shared.domain.identity import Credential
from shared.domain.service_types import ServiceType

#: Seconds. The token is for a request that the gateway already has.
TOKEN_TTL = 60
_CHALLENGE_CHARACTERS = 64


class _SubjectToken(msgspec.Struct, frozen=True):
    key_id_b64: Text
    challenge_b64: Text
    assertion_obj_b64: Text
    bundle_id: Text
    body_sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]


class AppAttestRequestCredential:
    kind: ClassVar = Credential.APP_ATTEST_REQUEST
    words: ClassVar = Words(
        "base64url of a JSON object `{key_id_b64, challenge_b64, assertion_obj_b64, bundle_id, body_sha256}`, which "
        "only a gateway may exchange",
        AppAttestCredential.words.sign_in,
        AppAttestCredential.words.identity,
        AppAttestCredential.words.form,
    )
    from_gateways: ClassVar = True

    def __init__(self, assertions: Assertions) -> None:
        self._assertions = assertions

    async def verify(self, subject_token: str, row: ServiceType, source: str) -> Subject:
        return await self._assertions.verify(lambda: read(subject_token), row)


def read(subject_token: str) -> Sent:
    """:raises InvalidSubjectToken, AppAttestError: it is malformed."""
    token = decode_subject_token(subject_token, _SubjectToken)
    challenge = decode_base64(token.challenge_b64, max_bytes=_CHALLENGE_CHARACTERS)
    if not challenge.isascii():
        raise InvalidSubjectToken
    return Sent(
        token.key_id_b64,
        token.assertion_obj_b64,
        token.bundle_id,
        challenge.decode(),
        bytes.fromhex(token.body_sha256),
        late_counters=LATE_COUNTERS,
        token_ttl=TOKEN_TTL,
        body_sha256=token.body_sha256,
    )
