"""The check of a decoded integrity token: bytes, clock and policy in, nothing or a named step out.

What Google answers, and what each field means: https://developer.android.com/google/play/integrity/verdicts, and
googleapis/google-api-go-client, playintegrity/v1/playintegrity-api.json (TokenPayloadExternal).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from shared import strict_json
from shared.domain.service_types import PlayLevel
from shared.domain.tokens import CLOCK_SKEW

_MILLISECONDS = re.compile(r"[0-9]{1,15}")
_ACCEPTED: dict[PlayLevel, frozenset[str]] = {
    "strong": frozenset({"MEETS_STRONG_INTEGRITY"}),
    "device": frozenset({"MEETS_STRONG_INTEGRITY", "MEETS_DEVICE_INTEGRITY"}),
    # an app gets this label only if it has asked for it in the Play Console; devices that do better lack it otherwise
    "basic": frozenset({"MEETS_STRONG_INTEGRITY", "MEETS_DEVICE_INTEGRITY", "MEETS_BASIC_INTEGRITY"}),
}


class Step(StrEnum):
    """Every step at which an install is rejected."""

    PACKAGE = "package"  # the app is not one of ours, or differs between request, app and question to Google
    USED = "used"  # the integrity token was accepted before
    TOKEN = "token"  # noqa: S105 - Google: not an integrity token of this app
    PAYLOAD = "payload"  # the decoded token has another shape
    REQUEST_HASH = "request_hash"  # it was made for another user id
    AGE = "age"  # too old, or of the future
    TESTING = "testing"  # the fixed verdict of a tester
    RECOGNITION = "recognition"  # not the app as Google Play has it
    CERTIFICATE = "certificate"  # not signed with one of our certificates
    DEVICE = "device"  # the device has less integrity than the service type demands


class Rejected(Exception):
    """An install is not accepted."""

    def __init__(self, step: Step) -> None:
        self.step = step
        super().__init__(str(step))


@dataclass(frozen=True, slots=True)
class Policy:
    """The installs that this deployment accepts.

    ``certificates``: base64url of SHA-256 without padding; none: any. ``max_age``: seconds. ``testing``: also the
    verdicts that a tester has fixed in the Play Console.
    """

    packages: frozenset[str]
    certificates: frozenset[str]
    max_age: int
    testing: bool = False


class _Request(msgspec.Struct, frozen=True):
    requestPackageName: str  # noqa: N815 - Google's names, here and below
    timestampMillis: str | int  # noqa: N815
    requestHash: str | None = None  # noqa: N815


class _App(msgspec.Struct, frozen=True):
    appRecognitionVerdict: str  # noqa: N815
    packageName: str | None = None  # noqa: N815
    certificateSha256Digest: list[str] = []  # noqa: N815


class _Device(msgspec.Struct, frozen=True):
    deviceRecognitionVerdict: list[str] = []  # noqa: N815


class _Testing(msgspec.Struct, frozen=True):
    isTestingResponse: bool = False  # noqa: N815


class _Payload(msgspec.Struct, frozen=True):
    requestDetails: _Request  # noqa: N815
    appIntegrity: _App  # noqa: N815
    deviceIntegrity: _Device = _Device()  # noqa: N815
    testingDetails: _Testing = _Testing()  # noqa: N815


def check(payload: bytes, *, package: str, user_id: str, level: PlayLevel, policy: Policy, now: float) -> None:
    """Check a ``tokenPayloadExternal``, which is JSON.

    :param package: the app for which Google decoded the token.
    :param user_id: as the client sent it, since its digest is compared.
    :param now: Unix time.
    :raises Rejected: at the first step that fails.
    """
    try:
        told = strict_json.decode(payload, _Payload)
    except ValueError:
        raise Rejected(Step.PAYLOAD) from None
    request, app = told.requestDetails, told.appIntegrity
    made = str(request.timestampMillis)
    if not _MILLISECONDS.fullmatch(made):
        raise Rejected(Step.PAYLOAD)
    age = now - int(made) / 1000
    certificates = {digest.rstrip("=") for digest in app.certificateSha256Digest}
    device = set(told.deviceIntegrity.deviceRecognitionVerdict)
    for step, good in (
        (Step.PACKAGE, package in policy.packages and request.requestPackageName == package),
        (Step.REQUEST_HASH, request.requestHash == hashlib.sha256(user_id.encode()).hexdigest()),
        (Step.AGE, -CLOCK_SKEW <= age <= policy.max_age),
        (Step.TESTING, policy.testing or not told.testingDetails.isTestingResponse),
        (Step.RECOGNITION, app.appRecognitionVerdict == "PLAY_RECOGNIZED"),
        (Step.PACKAGE, app.packageName == package),
        (Step.CERTIFICATE, not policy.certificates or bool(certificates & policy.certificates)),
        (Step.DEVICE, bool(device & _ACCEPTED[level])),
    ):
        if not good:
            raise Rejected(step)
