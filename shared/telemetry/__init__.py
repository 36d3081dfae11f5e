"""The telemetry of a service: logs, metrics, traces, reports of errors, its API's description."""
