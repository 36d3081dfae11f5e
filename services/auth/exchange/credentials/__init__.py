"""The kinds of credential that can be exchanged, one file each."""

from __future__ import annotations

from services.auth.exchange.credentials.app_attest import AppAttestCredential
from services.auth.exchange.credentials.app_attest_request import AppAttestRequestCredential
from services.auth.exchange.credentials.fxa import FxACredential
from services.auth.exchange.credentials.play import PlayCredential
from services.auth.exchange.models import CredentialVerifier

KINDS: tuple[type[CredentialVerifier], ...] = (
    FxACredential,
    AppAttestCredential,
    AppAttestRequestCredential,
    PlayCredential,
)
