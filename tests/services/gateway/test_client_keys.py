"""Keys beside the user's credential: read from one setting, and refused at the start if a row would lack one."""

from __future__ import annotations

import hashlib

import pytest

from services.gateway.client_keys import ClientKeys
from shared.domain.service_types import ConfigurationError
from tests.support.service_types import service_type

DIGEST = hashlib.sha256(b"a long key of a client").hexdigest()


def parse(text: str, *needed: str, debug: bool = False) -> ClientKeys:
    return ClientKeys.parse(text, [service_type(f"t{name}", client_key=name) for name in needed], debug=debug)


def test_keys_are_read_by_their_names() -> None:
    parse("")
    parse(f" dev:{DIGEST} , ops:{DIGEST.upper()},", "dev", "ops")


@pytest.mark.parametrize(
    ("text", "needed", "said"),
    [
        ("dev", (), "entry 1 must be name:sha256hex"),
        (f"dev:{DIGEST},the-key-itself", (), "entry 2 must be"),
        (f"dev:{DIGEST[1:]}", (), "entry 1 must be"),
        (f"DEV:{DIGEST}", (), "entry 1 must be"),
        (f"dev:{DIGEST},dev:{DIGEST}", (), "two keys named 'dev'"),
        (f"dev:{hashlib.sha256(b'').hexdigest()}", (), "'dev' is empty, or one that anybody would try first"),
        (f"dev:{hashlib.sha256(b'dev').hexdigest()}", (), "anybody would try"),
        ("", ("dev",), "no key named 'dev', which service type 'tdev' needs"),
        (f"dev:{DIGEST}", ("dev", "ops"), "no key named 'ops'"),
    ],
)
def test_what_can_not_be_used_stops_the_start_and_is_not_quoted(text: str, needed: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^CLIENT_KEYS: .*{said}") as caught:
        parse(text, *needed)
    assert "the-key-itself" not in str(caught.value)
