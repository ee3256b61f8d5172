# SPDX-License-Identifier: Apache-2.0
"""Resource quantities in the canonical form in which a Kubernetes server hands them back."""

import re
from decimal import ROUND_UP, Decimal

_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_FORM = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]?)(?:[eE]([+-]?\d+))?")


def canonical_quantity(value: str | float) -> str:
    """`0.5` -> `500m`, `1024Mi` -> `1Gi`, 4 -> `4`. Raises ValueError for what is no quantity."""
    text = str(value)
    match = _FORM.fullmatch(text)
    if not match or (match[2] and match[3]):
        raise ValueError(text)
    number, suffix, exponent = Decimal(match[1]), match[2], match[3]
    if suffix in _BINARY and suffix:
        amount = number * 1024 ** _BINARY.index(suffix)
        if amount == amount.to_integral_value() and (abs(amount) >= 1024 or amount == 0):
            return _binary(int(amount))
        return _decimal(amount)
    if exponent is not None:
        return _decimal(number.scaleb(int(exponent)), exponential=True)
    return _decimal(number.scaleb(_DECIMAL[suffix]))


def _binary(amount: int) -> str:
    power = 0
    while power < len(_BINARY) - 1 and amount and amount % 1024 == 0:
        amount //= 1024
        power += 1
    return f"{amount}{_BINARY[power]}"


def _decimal(amount: Decimal, *, exponential: bool = False) -> str:
    """The largest suffix that leaves an integer; finer than a nano is rounded up."""
    amount = amount.quantize(Decimal("1e-9"), rounding=ROUND_UP)
    for suffix, power in sorted(_DECIMAL.items(), key=lambda item: -item[1]):
        scaled = amount.scaleb(-power)
        if scaled == scaled.to_integral_value() and (scaled or power == 0):
            if exponential:
                return f"{int(scaled)}e{power}" if power else str(int(scaled))
            return f"{int(scaled)}{suffix}"
    raise ValueError(str(amount))
