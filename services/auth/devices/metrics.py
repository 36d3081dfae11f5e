"""The metrics of device verification."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from enum import StrEnum

from services.auth.appattest.assertion import Assertion
from services.auth.appattest.attestation import Attestation
from services.auth.appattest.errors import AppAttestError, Step
from services.auth.errors import AuthError, SlowDown
from shared.telemetry.metrics import Histogram, Registry

RESULTS = ("success", "invalid", "unavailable")


@contextlib.contextmanager
def timed(histogram: Histogram) -> Iterator[None]:
    """Observes the seconds of a verification, by its result; a limit says nothing about the credential."""
    started, result = time.perf_counter(), "unavailable"
    try:
        yield
        result = "success"
    except AuthError as error:
        result = result if isinstance(error, SlowDown) else "invalid"
        raise
    finally:
        histogram.observe(time.perf_counter() - started, result)


class Distrust(StrEnum):
    """Why a genuine assertion of a device is refused."""

    UNUSED = "unused"
    CATEGORY = "category"
    RECEIPT = "receipt"
    RISK = "risk"


class DeviceMetrics:
    def __init__(self, registry: Registry) -> None:
        self.challenge = registry.histogram(
            "validate_challenge_latency_seconds", "Time to check a challenge.", ("result",)
        )
        self.attestation = registry.histogram(
            "validate_app_attest_latency_seconds", "Time to verify and store an attestation.", ("result",)
        )
        self.assertion = registry.histogram(
            "validate_app_assert_latency_seconds", "Time to verify an assertion.", ("result",)
        )
        for histogram in (self.challenge, self.attestation, self.assertion):
            histogram.preset_all(RESULTS)
        self._steps = registry.counter(
            "app_attest_rejections_total", "App Attest objects rejected, by the step that caught them.", ("step",)
        )
        self._steps.preset_all([str(step) for step in Step])
        self._extensions = registry.counter(
            "app_attest_extensions_ignored_total",
            "Extensions of genuine App Attest objects that are not known, and objects that lack one of the two known.",
            ("kind",),
        )
        self._extensions.preset_all(("unknown", "incomplete"))
        self._distrusted = registry.counter(
            "app_attest_distrusted_total",
            "Genuine assertions refused: a key long unused, or a device that the row does not trust.",
            ("reason",),
        )
        self._distrusted.preset_all(tuple(Distrust))

    def verified(self, result: Attestation | Assertion) -> None:
        """Count ignored parts of a genuine object, which show a change at Apple."""
        if result.launch.unknown:
            self._extensions.inc("unknown", by=result.launch.unknown)
        if result.launch.incomplete:
            self._extensions.inc("incomplete")

    def distrusted(self, reason: Distrust) -> None:
        self._distrusted.inc(reason)

    def by_step(self) -> dict[str, int]:
        """The rejections of this process."""
        return {step: int(self._steps.value(step)) for step in map(str, Step)}

    def rejected(self, error: AppAttestError) -> None:
        self._steps.inc(str(error.step))
