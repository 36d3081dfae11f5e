"""Money: whole nano-dollars (``int``) inside, a string in configuration, a number in JSON."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal, Inexact, localcontext

NANO = 10**9
#: Digits before the point that no amount has: the numbers of a text such as "1e999999" are never computed.
_MOST_DIGITS = 18
_AMOUNT = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,6})?")


def usd_to_nano(text: str) -> int:
    """Nano-dollars of a decimal string such as ``"0.10"``.

    :raises ValueError: not a finite decimal, negative, beyond all money, or finer than a nano-dollar.
    """
    if not _AMOUNT.fullmatch(text) or (usd := Decimal(text)).adjusted() >= _MOST_DIGITS:
        raise ValueError("not an amount of money")
    with localcontext() as context:
        context.clear_flags()
        amount = usd * NANO
        if amount < 0 or context.flags[Inexact] or amount != amount.to_integral_value():
            raise ValueError("not an amount of money in whole nano-dollars")
    return int(amount)


def nano_to_usd(nano: int) -> float:
    """For JSON: the float whose shortest form has at most 9 decimals."""
    return round(nano / NANO, 9)


def usd_text(nano: int) -> str:
    """For files and sentences: all digits that say something, ``0.1``."""
    text = f"{Decimal(nano).scaleb(-9):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def ceil_nano(usd: Decimal) -> int:
    """The one rounding of a cost: up, to whole nano-dollars."""
    with localcontext() as context:
        context.prec = 60
        return int((usd * NANO).to_integral_value(rounding=ROUND_CEILING))
