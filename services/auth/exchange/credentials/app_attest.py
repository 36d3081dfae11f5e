"""The App Attest credential: an assertion in which an enrolled key signs the request and a fresh challenge.

The claims that it signs, its client data, name issuer, scope and challenge.
"""

from __future__ import annotations

import hashlib
from typing import ClassVar

import msgspec

from services.auth.appattest.encoding import MAX_CLIENT_DATA_BYTES, decode_base64, parse_client_data
from services.auth.errors import InvalidSubjectToken
from services.auth.exchange.credentials.assertions import Assertions, Sent, Text, decode_subject_token
from services.auth.exchange.models import Subject, Words
from shared.domain.identity import Credential
from shared.domain.service_types import ServiceType

_TYP = "mlpa-token-exchange"


class _SubjectToken(msgspec.Struct, frozen=True):
    key_id_b64: Text
    assertion_obj_b64: Text
    client_data_b64: Text
    bundle_id: Text


class AppAttestCredential:
    kind: ClassVar = Credential.APP_ATTEST
    words: ClassVar = Words(
        "base64url of a JSON object `{key_id_b64, assertion_obj_b64, client_data_b64, bundle_id}`",
        "an app on an enrolled device",
        "App Attest key id",
        "44 characters of base64",
    )
    from_gateways: ClassVar = False

    def __init__(self, assertions: Assertions, issuer: str) -> None:
        self._assertions, self._issuer = assertions, issuer

    async def verify(self, subject_token: str, row: ServiceType, source: str) -> Subject:
        return await self._assertions.verify(lambda: self._read(subject_token, row), row)

    def _read(self, subject_token: str, row: ServiceType) -> Sent:
        token = decode_subject_token(subject_token, _SubjectToken)
        client_data = decode_base64(token.client_data_b64, max_bytes=MAX_CLIENT_DATA_BYTES)
        claims = parse_client_data(client_data)
        challenge = claims.get("challenge")
        meant = claims.get("typ") == _TYP and claims.get("aud") == self._issuer and claims.get("scope") == row.name
        if not meant or not isinstance(challenge, str):
            raise InvalidSubjectToken
        return Sent(
            token.key_id_b64, token.assertion_obj_b64, token.bundle_id, challenge, hashlib.sha256(client_data).digest()
        )
