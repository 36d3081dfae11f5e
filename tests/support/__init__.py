"""Helpers of all tests: a clock, waiting for a condition, reading metrics, and service types."""
