"""What a service says about itself: logs, metrics, traces, reports of errors, its API's description."""
