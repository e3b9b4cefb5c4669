"""Currencies, minor units, and the only rounding there is (BILLING §3).

Amounts are exact until they are rounded: decimal text in, `Fraction` between, whole minor units (cents) out.
No float, and no `Decimal` arithmetic, whose default context drops digits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

from meterkit import limits
from meterkit.errors import InputError, ServiceError

_DECIMAL = re.compile(r"(0|[1-9][0-9]*)(?:\.([0-9]+))?\Z")

# ISO 4217, list one, the codes that have a minor unit, as published in 2026.
_CODES_BY_DECIMALS = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    2: (
        "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF "
        "CHE CHF CHW CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD "
        "GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL "
        "MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR "
        "PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP "
        "TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST XAD XCD XCG YER ZAR ZMW ZWG"
    ),
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
}
CURRENCIES: dict[str, int] = {
    code: decimals for decimals, codes in _CODES_BY_DECIMALS.items() for code in codes.split()
}


def decimals_of(currency: str) -> int:
    """Tell how many decimals a currency's minor unit has: JPY 0, USD 2, KWD 3.

    Raises:
        ServiceError: `currency_wrong`, for a code that ISO 4217 does not list with a minor unit.
    """
    try:
        return CURRENCIES[currency]
    except KeyError:
        raise ServiceError("currency_wrong", f"no ISO 4217 currency: {currency[:8]!a}") from None


def read_decimal(text: str) -> Fraction:
    """Read a decimal such as `0.002` exactly: no sign, exponent, space, or leading zero.

    Raises:
        InputError: `malformed_members`, also for more than 12 decimals or 30 digits.
    """
    match = _DECIMAL.match(text) if len(text) <= limits.AMOUNT_DIGITS_MAX + 1 else None
    if match is None:
        raise InputError("malformed_members", "an amount is written as decimal text, such as 0.002")
    whole, decimals = match.group(1), match.group(2) or ""
    if len(decimals) > limits.AMOUNT_DECIMALS_MAX or len(whole) + len(decimals) > limits.AMOUNT_DIGITS_MAX:
        raise InputError("malformed_members", f"at most {limits.AMOUNT_DECIMALS_MAX} decimals in an amount")
    return Fraction(int(whole + decimals), 10 ** len(decimals))


def round_half_away(value: Fraction, decimals: int) -> int:
    """Round an exact amount to whole minor units, halves away from zero. The only rounding."""
    scaled = abs(value) * int(10**decimals)
    minor = (2 * scaled.numerator + scaled.denominator) // (2 * scaled.denominator)
    return -minor if value < 0 else minor


def to_minor(amount: Fraction, currency: str) -> int:
    """Round an exact amount to the currency's minor unit."""
    return round_half_away(amount, decimals_of(currency))


def from_minor(amount_minor: int, currency: str) -> Fraction:
    """Give the exact amount that so many minor units are."""
    return Fraction(amount_minor, 10 ** decimals_of(currency))


def to_text(amount_minor: int, currency: str) -> str:
    """Write minor units as decimal text with all the currency's decimals: `-12.30`, in JPY `-1230`."""
    decimals = decimals_of(currency)
    digits = str(abs(amount_minor)).rjust(decimals + 1, "0")
    sign = "-" if amount_minor < 0 else ""
    return f"{sign}{digits[:-decimals]}.{digits[-decimals:]}" if decimals else f"{sign}{digits}"


def split(total_minor: int, weights: Mapping[str, Fraction | int]) -> dict[str, int]:
    """Cut a rounded total into named parts that add up to it again, by largest remainder.

    Shares are of the absolute amount, ties go by name: 0.05 over three equal ones is .02 .02 .01. Where all
    weights are zero the parts are equal. Weights are not negative, and there is at least one.
    """
    if not weights or any(weight < 0 for weight in weights.values()):
        raise ValueError("split needs weights, none of them negative")
    whole = sum(map(Fraction, weights.values()), Fraction(0))
    exact = {
        name: abs(total_minor) * (Fraction(weight) / whole if whole else Fraction(1, len(weights)))
        for name, weight in weights.items()
    }
    parts = {name: int(share) for name, share in exact.items()}
    left = abs(total_minor) - sum(parts.values())
    for name in sorted(exact, key=lambda name: (parts[name] - exact[name], name))[:left]:
        parts[name] += 1
    return {name: -part if total_minor < 0 else part for name, part in parts.items()}
