"""A stand-in for Google: its token endpoint and the Play Integrity API, with simulated installs of an Android app.

What it imitates, with the source ("verdicts", "standard": pages below
developer.android.com/google/play/integrity; "discovery": playintegrity/v1/playintegrity-api.json in
googleapis/google-api-go-client):

    POST /token: grant_type jwt-bearer, an assertion        RFC 7523 section 2.1;
    signed by the service account's key (RS256; iss, aud,   googleapis/google-auth-library-python,
    scope, iat, exp), {access_token, expires_in,            google/oauth2/_client.py (jwt_grant), service_account.py;
    token_type}; errors {error, error_description}          RFC 6749 section 5.2
    the key file of a service account                       google-auth, google/auth/_service_account_info.py
    POST /v1/{package}:decodeIntegrityToken                 discovery (decodeIntegrityToken); "standard", which writes
    {"integrityToken"} or {"integrity_token"}               the latter
    its scope                                               discovery (auth.oauth2.scopes)
    {"tokenPayloadExternal": {requestDetails,               discovery (TokenPayloadExternal), "verdicts": requestHash
    appIntegrity, deviceIntegrity, accountDetails}}         of standard requests, timestampMillis as text (int64)
    UNEVALUATED: no package, version and certificates       discovery (AppIntegrity: "set iff")
    a device without integrity: an empty verdict            "verdicts"
    testingDetails.isTestingResponse of a tester            discovery (TestingDetails)
    errors {"error": {code, message, status}}               google.aip.dev/193 (INVALID_ARGUMENT 400, UNAUTHENTICATED
                                                            401, PERMISSION_DENIED 403, RESOURCE_EXHAUSTED 429)
    403 for a token that was made for another project       issues of 1nikolas/play-integrity-checker-server-vercel
                                                            (1) and microg/GmsCore (2832)
    10,000 requests a day                                   support.google.com/googleplay, form "Play Integrity API"

Where it differs on purpose: an integrity token is a random text that this process remembers, where Google's is
encrypted; a token can be decoded any number of times; the day of the quota ends when the process does.

Controls, for local runs and tests only:
    POST   /local/integrity-token   an ``InstallOrder`` -> {"token"}
    POST   /local/faults            a ``Fault``; replaces that of the same endpoint
    DELETE /local/faults            all is well again

Run alone: ``python -m services.local.play --port 8086 --folder DIR``, which writes the service account's key there. It
must listen on loopback only: whoever reaches it can be any install.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import click
import msgspec
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jose import jwt
from jose.exceptions import JOSEError

from services.local.faults import Faults, answer_probe, read
from services.local.files import write_private
from services.local.pki import key_to_pem

PACKAGE = "org.mozilla.fenix"
#: Base64url of SHA-256 of the certificate that signs the simulated app.
CERTIFICATE = base64.urlsafe_b64encode(hashlib.sha256(b"certificate of a simulated app").digest()).rstrip(b"=").decode()
SCOPE = "https://www.googleapis.com/auth/playintegrity"
EMAIL = "mlpa@simulated.iam.gserviceaccount.com"
KEY_FILE = "service_account.json"
QUOTA = 10_000
#: Google's name of itself in assertions, wherever they are sent (google-auth, service_account.py).
_AUDIENCE = "https://oauth2.googleapis.com/token"
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_STATUSES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 429: "RESOURCE_EXHAUSTED"}


@dataclass(frozen=True, slots=True)
class Install:
    """One install of the app, with the id that it made for itself."""

    user_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    package: str = PACKAGE

    @property
    def request_hash(self) -> str:
        return hashlib.sha256(self.user_id.encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps({"user_id": self.user_id, "package": self.package})

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))


class InstallOrder(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The install and the verdict of an integrity token. ``app_package`` is the app that really asked."""

    request_hash: str | None
    package: str = PACKAGE
    app_package: str | None = None
    certificates: tuple[str, ...] = (CERTIFICATE,)
    recognition: Literal["PLAY_RECOGNIZED", "UNRECOGNIZED_VERSION", "UNEVALUATED"] = "PLAY_RECOGNIZED"
    device: tuple[str, ...] = ("MEETS_DEVICE_INTEGRITY",)
    testing: bool = False
    #: Whether the app named another Cloud project than ours.
    foreign: bool = False
    #: Seconds since the request.
    age: float = 0


class StandIn:
    """The server's state; ``app`` serves it.

    :param key: of the service account; a new one when not given.
    """

    def __init__(self, key: rsa.RSAPrivateKey | None = None, *, clock: Callable[[], float] = time.time) -> None:
        #: Tokens that are still decoded, until 429.
        self.quota = QUOTA
        self.faults = Faults(lambda fault: _error(fault.status, "as ordered", headers=fault.headers))
        self._clock = clock
        self._key = key or rsa.generate_private_key(65537, 2048)
        self._access: dict[str, float] = {}  # the end of each access token
        self._payloads: dict[str, tuple[str, dict[str, Any]]] = {}  # package and payload, by integrity token

    def service_account(self, url: str) -> str:
        """The key file of the service account, for a server at this URL."""
        members = {
            "type": "service_account",
            "project_id": "simulated",
            "private_key_id": "1",
            "private_key": key_to_pem(self._key),
            "client_email": EMAIL,
            "token_uri": f"{url}/token",
        }
        return json.dumps(members, indent=1)

    def mint(self, order: InstallOrder) -> str:
        """An integrity token as Google Play gives it to an app."""
        return self.mint_payload(order.package, None if order.foreign else self.payload(order))

    def mint_payload(self, package: str, payload: Any) -> str:
        """An integrity token of any payload."""
        token = secrets.token_urlsafe(300)
        self._payloads[token] = package, payload
        return token

    def payload(self, order: InstallOrder) -> dict[str, Any]:
        request = {"requestPackageName": order.package, "timestampMillis": str(int((self._clock() - order.age) * 1000))}
        if order.request_hash is not None:
            request["requestHash"] = order.request_hash
        app: dict[str, Any] = {"appRecognitionVerdict": order.recognition}
        if order.recognition != "UNEVALUATED":
            app["packageName"] = order.app_package or order.package
            if order.certificates:  # no empty list in proto3's JSON
                app["certificateSha256Digest"] = list(order.certificates)
            app["versionCode"] = "2016120000"
        payload = {
            "requestDetails": request,
            "appIntegrity": app,
            "deviceIntegrity": {"deviceRecognitionVerdict": list(order.device)} if order.device else {},
            "accountDetails": {"appLicensingVerdict": "LICENSED"},
        }
        if order.testing:
            payload["testingDetails"] = {"isTestingResponse": True}
        return payload

    def withdraw_access(self) -> None:
        """Refuse all access tokens from now on."""
        self._access.clear()

    def app(self) -> web.Application:
        """Serve it with ``handler_cancellation=True``, so that a hanging request ends with its client."""
        app = web.Application()
        app.add_routes(
            [
                *self.faults.routes(
                    {
                        "token": web.post("/token", self._token),
                        "decode": web.post("/v1/{package}:decodeIntegrityToken", self._decode),
                    }
                ),
                web.post("/local/integrity-token", self._mint),
                web.get("/", answer_probe),
            ]
        )
        return app

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        encoding, shape = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        pem = self._key.public_key().public_bytes(encoding, shape).decode()
        try:
            claims = jwt.decode(str(form.get("assertion")), pem, algorithms=["RS256"], audience=_AUDIENCE)
        except JOSEError:
            claims = {}
        if form.get("grant_type") != _GRANT or claims.get("iss") != EMAIL or SCOPE not in claims.get("scope", ""):
            refused = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
            return web.json_response(refused, status=400)
        token = f"ya29.{secrets.token_urlsafe(60)}"
        self._access[token] = self._clock() + 3600
        return web.json_response({"access_token": token, "expires_in": 3599, "token_type": "Bearer"})

    async def _decode(self, request: web.Request) -> web.Response:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self._access.get(bearer, 0) < self._clock():
            return _error(401, "Request had invalid authentication credentials.")
        if self.quota <= 0:
            return _error(429, "Quota exceeded for quota metric 'Requests' and limit 'Requests per day'.")
        self.quota -= 1
        body = await request.json()
        token = body.get("integrityToken", body.get("integrity_token"))
        package, payload = self._payloads.get(token, (None, None))
        if package != request.match_info["package"]:
            return _error(400, "Integrity token cannot be decrypted due to invalid arguments.")
        if payload is None:
            return _error(403, "You are not authorized to decode the requested integrity token.")
        return web.json_response({"tokenPayloadExternal": payload})

    async def _mint(self, request: web.Request) -> web.Response:
        return web.json_response({"token": self.mint(await read(request, InstallOrder))})


def _error(status: int, message: str, *, headers: dict[str, str] | None = None) -> web.Response:
    error = {"code": status, "message": message, "status": _STATUSES.get(status, "UNAVAILABLE")}
    return web.json_response({"error": error}, status=status, headers=headers)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, required=True, help="Port to listen on.")
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="Folder for the service account's key.")
def main(host: str, port: int, folder: Path) -> None:
    """Run the stand-in for Google."""
    stand_in = StandIn()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(folder / KEY_FILE, stand_in.service_account(f"http://{host}:{port}"))
    web.run_app(stand_in.app(), host=host, port=port, handler_cancellation=True, shutdown_timeout=1, print=None)


if __name__ == "__main__":
    main()
