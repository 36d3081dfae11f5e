"""Money is exact."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, strategies as st

from shared.domain import money


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        *(
            ("0.10", 10**8),
            ("0", 0),
            ("1", 10**9),
            ("0.000000001", 1),
            ("1e-09", 1),
            ("1E2", 10**11),
            (".5", 5 * 10**8),
        ),
        ("123456789012345678." + "0" * 40, 123_456_789_012_345_678 * 10**9),
    ],
)
def test_money_is_read_exactly(text: str, nano: int) -> None:
    assert money.usd_to_nano(text) == nano


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "-1",
        "-0.000000001",
        "NaN",
        "Infinity",
        "0.0000000001",
        "1e-12",
        "1e18",
        "1e999999",
        "0e999999",
        "1_0",
        "\u0661",
        "\uff11",
        " 1",
        "1\n",
        "1e-\u0661",
        "1." + "0" * 30 + "1",
        "123456789012345678.00000000001",
        "1e-999999999999999999999",
    ],
)
def test_what_is_no_money_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        money.usd_to_nano(text)


@given(st.decimals(0, 10**17, places=12), st.integers(0, 30))
def test_money_is_read_exactly_or_refused(usd: Decimal, zeros: int) -> None:
    if (nano := Fraction(usd) * 10**9).denominator == 1:
        assert money.usd_to_nano(f"{usd:f}{'0' * zeros}") == nano
    else:
        with pytest.raises(ValueError):
            money.usd_to_nano(f"{usd:f}{'0' * zeros}")


@given(st.integers(0, 10**15))
def test_money_in_json_has_at_most_nine_decimals(nano: int) -> None:
    shown = Decimal(repr(money.nano_to_usd(nano)))
    assert int((shown * 10**9).to_integral_value()) == nano or nano > 2**53
    assert -int(shown.as_tuple().exponent) <= 9 or shown == shown.to_integral_value()


@given(st.decimals(0, 1000, places=15))
def test_a_cost_is_rounded_up_once(usd: Decimal) -> None:
    nano = money.ceil_nano(usd)
    assert 0 <= nano - usd * money.NANO < 1


def test_no_digit_of_a_cost_is_lost() -> None:
    assert money.ceil_nano(Decimal("123456789.000000001" + "0" * 25 + "1")) == 123_456_789_000_000_002


@pytest.mark.parametrize(("nano", "text"), [(0, "0"), (1, "0.000000001"), (10**8, "0.1"), (10 * money.NANO, "10")])
def test_money_in_sentences_has_the_digits_that_say_something(nano: int, text: str) -> None:
    assert money.usd_text(nano) == text
