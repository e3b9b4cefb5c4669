"""Asking the core whether a call may run, with what this ledger and this moment say."""

from __future__ import annotations

from device_sdk import folding, timekeeper
from device_sdk.cells import Standing
from device_sdk.holder import Holder
from device_sdk.leases import Lease
from device_sdk.ledger_transaction import SEQ_END, Transaction
from device_sdk.readings import Clocks
from meterkit import entitlements, limits, usage
from meterkit.clocks import Instant
from meterkit.entitlements import Allowed, Decision, Denied, Used
from meterkit.errors import TrustError
from meterkit.ledger import TokenRef
from meterkit.licenses import Meter, ModelTerms
from meterkit.tokens import Token

_NEVER_NS = 2**62


def unnamed(tx: Transaction, holder: Holder) -> Token | None:
    """The token in force, if it is newer than the one that the ledger names: its installation is not complete."""
    holder.refresh()
    named = tx.token_before(SEQ_END)
    if holder.genuine is None or (named is not None and named.serial >= holder.genuine.token.serial):
        return None
    return holder.genuine.token


def install(tx: Transaction, token: Token, system: Clocks, now: Instant) -> None:
    """Make the ledger say that a token, which is stored, counts from here on, unless it does already; and take
    what it says of the time. What was counted before must be folded.

    Raises:
        TrustError: `serial_rollback` where the ledger names one that is no older.
    """
    named = tx.token_before(SEQ_END)
    check_serial(named, token)
    if named is None or named.jti != token.jti:
        members = usage.token_installed(
            jti=token.jti,
            serial=token.serial,
            iat=token.iat,
            license_id=token.license_id,
            anchor=token.anchor,
        )
        tx.append(members, time=now.effective_s, boot=now.boot)
    if token.time_floor is not None:
        timekeeper.mend(tx, system, token.time_floor, serial=token.serial)
    timekeeper.raise_signed(tx, system, token.iat)


def check_serial(named: TokenRef | None, token: Token) -> None:
    """Return if a token may follow, or is, the one that the ledger names last; else somebody put an old token
    file back.
    """
    if named is not None and named.jti != token.jti and token.serial <= named.serial:
        raise TrustError("serial_rollback", f"serial {token.serial} after {named.serial}")


def used_units(tx: Transaction, token: Token, meter: Meter) -> Used:
    """What counts against a token's limit: recorded after its anchor, or leased by any process. Where the token
    has none, nothing does, and nothing is added up.
    """
    terms = token.terms(meter[0])
    if terms is None or terms.limit is None:
        return Used(units=0)
    anchored = token.anchor.epoch == tx.epoch() and tx.hash_at(token.anchor.seq) == token.anchor.head
    recorded = tx.used_after(token.anchor.seq, meter) if anchored else 0
    return Used(units=recorded + folding.leased_in_all(tx, meter), anchored=anchored)


def decide(tx: Transaction, token: Token, counted: tuple[Meter, str], units: int, now: Instant) -> Decision:
    """Ask `entitlements.decide` with what this ledger says was used, for a meter and a model's digest.

    A session keeps the terms it was opened under; a later token that meters the model otherwise, or no longer
    names its bytes, ends it.
    """
    meter, digest = counted
    decision = entitlements.decide(token, meter[0], used_units(tx, token, meter), units, now)
    terms = token.terms(meter[0])
    if isinstance(decision, Allowed) and terms is not None:
        if terms.meter != meter:
            return Denied(code="model_not_licensed", detail=f"{meter[0]} is metered otherwise now; open it again")
        if digest not in terms.sha256:
            return Denied(code="model_digest_wrong", detail=f"{meter[0]}: sha256 {digest}")
    return decision


def decide_unused(tx: Transaction, token: Token, terms: ModelTerms, unused_units: int, now: Instant) -> Decision:
    """Ask whether one more unit would be allowed, if a process gave back what it holds unused."""
    used = used_units(tx, token, terms.meter)
    free = Used(units=max(0, used.units - unused_units), anchored=used.anchored)
    return entitlements.decide(token, terms.name, free, 1, now)


def make_lease(units: int, standing: Standing, token: Token, now: Instant, *, scarce: bool) -> Lease:
    """A lease that ends at the next edge: its window's end, or an instant that the token names."""
    window_end_s = (now.window + 1) * limits.WINDOW_S
    token_edges = [edge for edge in token.edges() if edge > now.effective_s]
    hard_ns = now.boot_ns_at(min(token_edges)) if token_edges else _NEVER_NS
    return Lease(
        units,
        standing=standing,
        scarce=scarce,
        deadline_ns=min(now.boot_ns_at(window_end_s), hard_ns),
        hard_ns=hard_ns,
    )
