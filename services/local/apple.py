"""A stand-in for Apple's App Attest server, which renews the receipts of simulated devices.

What it imitates, with the source ("Apple": "Assessing fraud risk" of DeviceCheck), beside the receipts themselves
(``services/local/receipts.py``):

    POST /v1/attestationData, base64 of a receipt in, base64 of     Apple
    a newer one out
    Authorization: a JWT without a scheme: ES256, kid, iss (the     Apple; takimoto3/app-attest, fraud/client.go;
    team), iat of the last hour; 401 for another, or for a          veehaitch/devicecheck-appattest,
    receipt of another team                                         receipt/AppleJwsGenerator.kt
    304 before the receipt's "not before"                           Apple
    400 for a body that is no receipt, or of the other environment  Apple
    404 without data for the receipt, an expired one included       Apple
    429, 500, 503                                                   Apple
    the risk metric: keys that the device attested                  Apple

Where it differs on purpose: it does not verify receipts; it counts the keys of a device that were presented here; a
key's metric can be set.

Controls, for local runs and tests only:
    POST   /local/metrics   a ``MetricOrder``: the metric that a key has from now on
    POST   /local/faults    a ``Fault`` of the endpoint ``renew``
    DELETE /local/faults    all is well again

Run alone: ``python -m services.local.apple --port 8087 --folder DIR --pki FILE``, which writes a DeviceCheck key to the
folder. It must listen on loopback only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jose import jwt
from jose.exceptions import JOSEError

from services.local import receipts
from services.local.device import x962
from services.local.faults import Faults, answer_probe, read
from services.local.files import write_private
from services.local.pki import Pki, key_to_pem

KEY_FILE = "AuthKey_SIMULATED1.p8"
KEY_ID = "SIMULATED1"
_HOUR = 3600


class MetricOrder(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """``key_id`` is base64."""

    key_id: str
    metric: int


class StandIn:
    """The server's state; ``app`` serves it.

    :param pki: of the devices whose receipts it renews.
    """

    def __init__(self, pki: Pki, *, team: str, clock: Callable[[], float] = time.time) -> None:
        self.calls: Counter[str] = Counter()
        self.faults = Faults(lambda fault: web.Response(status=fault.status, headers=fault.headers))
        self.metrics: dict[str, int] = {}
        self._pki, self._team = pki, team
        self._clock = clock
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._keys: defaultdict[bytes, set[str]] = defaultdict(set)  # that a device attested

    @property
    def key_pem(self) -> str:
        """The DeviceCheck key of the team, as Apple gives it to its developers."""
        return key_to_pem(self._key)

    def app(self) -> web.Application:
        """Serve it with ``handler_cancellation=True``, so that a hanging request ends with its client."""
        app = web.Application()
        app.add_routes(
            [
                *self.faults.routes({"renew": web.post("/v1/attestationData", self._renew)}),
                web.post("/local/metrics", self._set_metric),
                web.get("/", answer_probe),
            ]
        )
        return app

    async def _renew(self, request: web.Request) -> web.Response:
        status, body = self._answer(request.headers.get("Authorization", ""), await request.read())
        self.calls[str(status)] += 1
        return web.Response(status=status, body=body)

    def _answer(self, token: str, raw: bytes) -> tuple[int, bytes]:
        now = self._clock()
        if not self._authorised(token, now):
            return 401, b"Unauthorized"
        try:
            fields = receipts.fields_of(base64.b64decode(raw, validate=True))
            key_id = _key_id(fields[3])
            expires = _moment(fields[21])
            not_before = _moment(fields[19]) if 19 in fields else 0.0
            app_id, device, environment = fields[2].decode(), fields[5], fields[7]
        except (ValueError, KeyError, binascii.Error):
            return 400, b"Bad Payload"
        if environment != b"sandbox":
            return 400, b"Incorrect Environment"
        if not app_id.startswith(f"{self._team}."):
            return 401, b"Unauthorized"
        if expires <= now:
            return 404, b"Not Found"
        if not_before > now:
            return 304, b""
        self._keys[device].add(key_id)
        metric = self.metrics.get(key_id, len(self._keys[device]))
        self.calls[key_id] += 1
        moment = datetime.fromtimestamp(now, UTC)
        renewed = receipts.renewed_fields(fields, metric=metric, now=moment)
        signed = receipts.sign(renewed, self._pki, receipts.signer(self._pki, moment))
        return 200, base64.b64encode(signed)

    def _authorised(self, token: str, now: float) -> bool:
        pem = self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        try:
            claims = jwt.decode(token, pem, algorithms=["ES256"])
            kid = jwt.get_unverified_header(token).get("kid")
        except JOSEError:
            return False
        return kid == KEY_ID and claims.get("iss") == self._team and abs(now - claims.get("iat", 0)) < _HOUR

    async def _set_metric(self, request: web.Request) -> web.Response:
        order = await read(request, MetricOrder)
        self.metrics[order.key_id] = order.metric
        return web.json_response({})


def _key_id(certificate: bytes) -> str:
    key = x509.load_der_x509_certificate(certificate).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return base64.b64encode(hashlib.sha256(x962(key)).digest()).decode()


def _moment(text: bytes) -> float:
    return datetime.fromisoformat(text.decode()).timestamp()


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, required=True, help="Port to listen on.")
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="Folder for the DeviceCheck key.")
@click.option("--pki", type=click.Path(path_type=Path), required=True, help="The PKI of the devices, as JSON.")
@click.option("--team", default="DEVELOPMNT", show_default=True, help="The team that has the key.")
def main(host: str, port: int, folder: Path, pki: Path, team: str) -> None:
    """Run the stand-in for Apple."""
    stand_in = StandIn(Pki.from_json(pki.read_text()), team=team)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(folder / KEY_FILE, stand_in.key_pem)
    web.run_app(stand_in.app(), host=host, port=port, handler_cancellation=True, shutdown_timeout=1, print=None)


if __name__ == "__main__":
    main()
