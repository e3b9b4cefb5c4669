"""An invoice's lines as Stripe's invoice items: amounts, and what makes each line itself. Pure.

Stripe's minor units are ISO 4217's but for some currencies; what cannot be said in them exactly is refused, never
rounded: the customer would be charged what no invoice says.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from licensing_server.pages import Document
from meterkit import money
from meterkit.canonical import digest, to_bytes
from meterkit.errors import ServiceError

# As Stripe documents them. Of UGX it says both that amounts are whole and that they have two decimals.
_CODES_BY_DECIMALS = {
    0: "BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF VND VUV XAF XOF XPF",
    2: "ISK",
    3: "BHD JOD KWD OMR TND",
}
_DECIMALS = {code: decimals for decimals, codes in _CODES_BY_DECIMALS.items() for code in codes.split()}
_NOT_TAKEN = frozenset({"UGX"})
_LAST_DIGIT = {3: 10}  # amounts with three decimals end in a zero
_DESCRIPTION_CHARS_MAX = 500
_IDENTITY = ("license", "charge", "plan", "version", "kind", "service_start_at", "service_end_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One line as it is to be sent: its place in the invoice, a name of its own for good, amount and the rest."""

    place: int
    line: str  # hex: derived from the invoice's number, the place, and what the line bills
    amount: int
    currency: str
    description: str
    start_at: int
    end_at: int
    metadata: dict[str, str]

    def params(self, stripe_customer: str) -> dict[str, Any]:
        """What Stripe is asked to make. A coupon there changes nothing of what is rated here."""
        return {
            "customer": stripe_customer,
            "amount": self.amount,
            "currency": self.currency,
            "description": self.description,
            "discountable": False,
            "period": {"start": self.start_at, "end": self.end_at - 1},  # both inclusive
            "metadata": self.metadata,
        }


def items(invoice: Document) -> list[Item]:
    """The lines of a finalized invoice that have an amount, also below zero; before tax.

    Raises:
        ServiceError: `currency_wrong` for a currency or an amount that Stripe does not take.
    """
    lines = enumerate(invoice["lines"], start=1)
    return [_item(invoice, place, line) for place, line in lines if line["amount_minor"] != 0]


def _item(invoice: Document, place: int, line: Document) -> Item:
    number, currency = invoice["number"], invoice["currency"]
    named = digest("mk-invoice-line", to_bytes([number, place, *(line[name] for name in _IDENTITY)])).hex()
    return Item(
        place=place,
        line=named,
        amount=amount(line["amount_minor"], currency),
        currency=currency.lower(),
        description=line["description"][:_DESCRIPTION_CHARS_MAX],
        start_at=line["service_start_at"],
        end_at=line["service_end_at"],
        metadata={
            "meterkit_line": named,
            "meterkit_invoice": number,
            "meterkit_place": str(place),
            "meterkit_license": line["license"],
            "meterkit_charge": line["charge"],
        },
    )


def amount(minor: int, currency: str) -> int:
    """Write an amount in Stripe's minor units.

    Raises:
        ServiceError: `currency_wrong`.
    """
    iso = money.decimals_of(currency)
    decimals = _DECIMALS.get(currency, iso)
    if currency in _NOT_TAKEN or (currency not in _DECIMALS and iso != 2):
        raise ServiceError("currency_wrong", f"{currency} is not sent to Stripe")
    exact = Fraction(minor * 10**decimals, 10**iso)
    if exact.denominator != 1 or exact.numerator % _LAST_DIGIT.get(decimals, 1):
        text = money.to_text(minor, currency)
        raise ServiceError("currency_wrong", f"Stripe takes no {currency} amount as fine as {text}")
    return exact.numerator
