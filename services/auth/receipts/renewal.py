"""The job that verifies the receipts of App Attest keys, renews them at Apple, and stores the risk metric.

Any number may run at the same time: each claims what it works on. One that is stopped loses nothing: what it has
claimed is due again when the claim ends.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509

from services.auth.appattest.encoding import decode_key_id
from services.auth.appattest.policy import load_roots
from services.auth.devices.storage import FORGED
from services.auth.receipts import storage
from services.auth.receipts.apple import Apple, Credentials, Outcome, Reply
from services.auth.receipts.receipt import SKEW, BadReceipt, Receipt, apple_root_pem, verify_receipt
from services.auth.receipts.storage import Claimed, Settled
from services.auth.settings import AuthSettings
from shared.domain.service_types import ConfigurationError
from shared.service.start_rules import receipts_are_https, refuse
from shared.stores.postgres import Database
from shared.telemetry import logs

_BATCH = 50
_AT_A_TIME = 8
_DAY = 86_400.0
#: Seconds until a receipt is tried again that Apple did not answer about.
_AGAIN = 600.0
#: Failures in a row after which the job gives up, and the pause where Apple asks for one without a length.
_FAILURES, _PAUSE = 5, 60.0
#: Answers after which no other receipt is worth a try.
_ENDS = {
    Outcome.UNAUTHORIZED: "Apple refuses APPLE_RECEIPT_KEY, with this key id and team",
    Outcome.BUSY: "Apple asks to wait",
}

_log = logs.logger("receipts")


class Stopped(Exception):
    """The job cannot go on; the message says why."""


@dataclass(frozen=True, slots=True)
class Trust:
    """The team and the trust anchors that receipts are verified against."""

    team_id: str
    roots: Sequence[x509.Certificate]


def prepare(settings: AuthSettings) -> tuple[Credentials, Trust]:
    """The credentials for Apple and the trust for receipts, from files.

    :raises ConfigurationError: naming the variable or file.
    """
    refuse(settings, (receipts_are_https,))
    path = settings.apple_receipt_key
    if path is None or not settings.apple_receipt_key_id or not settings.app_development_team:
        raise ConfigurationError("APPLE_RECEIPT_KEY, APPLE_RECEIPT_KEY_ID and APP_DEVELOPMENT_TEAM are needed")
    team = settings.app_development_team
    try:
        credentials = Credentials.read(path, key_id=settings.apple_receipt_key_id, team_id=team)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"APPLE_RECEIPT_KEY: {path}: {_why(error)}") from error
    path = settings.apple_receipt_root_ca
    try:
        return credentials, Trust(team, load_roots(path.read_bytes() if path else apple_root_pem()))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"APPLE_RECEIPT_ROOT_CA: {path}: {_why(error)}") from error


def _why(error: OSError | ValueError) -> str:
    return str(error.strerror if isinstance(error, OSError) else error)


class Renewal:
    """One run of the job. ``done`` counts its receipts by outcome.

    :param rate: the most requests to Apple per second.
    :param every: seconds between two renewals of one receipt, or longer if Apple says so.
    """

    def __init__(
        self,
        database: Database,
        apple: Apple,
        trust: Trust,
        *,
        rate: float,
        every: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.done: Counter[str] = Counter()
        self._database, self._apple, self._trust = database, apple, trust
        self._interval = 1 / rate
        self._every, self._clock = every, clock
        self._next = 0.0
        self._failures = 0
        self._stop: str | None = None
        self._pause = 0.0
        self._places = asyncio.Semaphore(_AT_A_TIME)

    async def run(self, limit: int | None = None) -> None:
        """Work until nothing is due any more, or through so many receipts.

        :raises Stopped: Apple does not answer, or not us.
        :raises DatabaseUnavailable: PostgreSQL could not be asked.
        """
        while limit is None or limit > 0:
            claimed = await storage.claim(self._database, limit=_BATCH if limit is None else min(_BATCH, limit))
            if not claimed:
                return
            if limit is not None:
                limit -= len(claimed)
            try:
                async with asyncio.TaskGroup() as group:
                    for each in claimed:
                        group.create_task(self._one(each))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
            if self._stop:
                raise Stopped(self._stop)

    async def _one(self, claimed: Claimed) -> None:
        async with self._places:
            outcome, settled = await self._outcome(claimed)
        # another job may have it by now, or the device has attested again
        if await storage.settle(self._database, claimed, settled):
            self.done[outcome] += 1

    async def _outcome(self, claimed: Claimed) -> tuple[str, Settled]:
        now = self._clock()
        try:
            receipt = self._verify(claimed, claimed.receipt)
        except BadReceipt as error:
            _log.warning("receipt_forged", fault=str(error.fault))
            return FORGED, Settled(None, FORGED)
        if receipt.expires.timestamp() <= now:
            return "expired", Settled(None, "expired")
        if receipt.not_before is not None and receipt.not_before.timestamp() > now:
            return Outcome.TOO_EARLY, Settled(receipt.not_before.timestamp())
        await self._turn()
        if self._stop:
            return "put_off", Settled(now + self._pause)
        reply = await self._apple.renew(claimed.receipt)
        self._note(reply)
        return self._settled(claimed, reply, now)

    def _verify(self, claimed: Claimed, raw: bytes) -> Receipt:
        """:raises BadReceipt: it is not Apple's receipt for the device."""
        return verify_receipt(
            raw,
            app_id=f"{self._trust.team_id}.{claimed.bundle_id}",
            key_id=decode_key_id(claimed.key_id),
            roots=self._trust.roots,
            now=datetime.fromtimestamp(self._clock(), UTC),
        )

    async def _turn(self) -> None:
        """Wait for a place in the rate of requests."""
        now = asyncio.get_running_loop().time()
        self._next = max(now, self._next) + self._interval
        await asyncio.sleep(self._next - self._interval - now)

    def _note(self, reply: Reply) -> None:
        self._failures = self._failures + 1 if reply.outcome is Outcome.UNAVAILABLE else 0
        if reply.outcome in _ENDS:
            self._stop = _ENDS[reply.outcome]
            self._pause = 0.0 if reply.outcome is Outcome.UNAUTHORIZED else min(reply.retry_after or _PAUSE, _DAY)
        elif self._failures >= _FAILURES:
            self._stop, self._pause = "Apple does not answer", _AGAIN

    def _settled(self, claimed: Claimed, reply: Reply, now: float) -> tuple[str, Settled]:
        match reply.outcome:
            case Outcome.RENEWED:
                return self._renewed(claimed, reply.receipt, now)
            case Outcome.TOO_EARLY:
                return reply.outcome, Settled(now + _DAY)
            case Outcome.UNKNOWN | Outcome.REFUSED:
                return reply.outcome, Settled(now + self._every, str(reply.outcome))
            case Outcome.UNAVAILABLE:
                return reply.outcome, Settled(now + _AGAIN)
            case Outcome.UNAUTHORIZED | Outcome.BUSY:
                return reply.outcome, Settled(now + self._pause)

    def _renewed(self, claimed: Claimed, raw: bytes, now: float) -> tuple[str, Settled]:
        """A new receipt counts only if it verifies, has a metric, and was made just now."""
        try:
            receipt = self._verify(claimed, raw)
        except BadReceipt as error:
            _log.warning("receipt_of_apple_rejected", fault=str(error.fault))
            return "rejected", Settled(now + self._every)
        if receipt.risk_metric is None or receipt.created.timestamp() < now - SKEW.total_seconds():
            _log.warning("receipt_of_apple_rejected", fault="stale")
            return "rejected", Settled(now + self._every)
        due = now + self._every
        if receipt.not_before is not None:
            due = max(due, receipt.not_before.timestamp())
        return Outcome.RENEWED, Settled(due, None, raw, receipt.risk_metric)
