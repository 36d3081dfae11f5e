"""What auth and the gateway agree on about access tokens (RFC 9068)."""

AUDIENCE = "mlpa-gateway"
TYPE = "at+jwt"
#: Characters. Ours have about 700.
MAX_LENGTH = 2048
#: How far two machines' clocks may be apart, in seconds.
CLOCK_SKEW = 30
