"""What a device can tell of itself: until when it works, how much is left, and why it will stop."""

from __future__ import annotations

from dataclasses import dataclass

from device_sdk import deciding
from device_sdk.counter import Counter
from device_sdk.holder import Holder
from device_sdk.ledger_transaction import SEQ_END, Transaction
from meterkit.clocks import Instant
from meterkit.entitlements import Denied
from meterkit.errors import CODES, MeterkitError
from meterkit.tokens import Token, standing


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """One licensed model: its meter, its limit, what is left of it, and the code for which it is denied."""

    name: str
    unit: str
    limit_units: int | None
    left_units: int | None
    code: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """`state` is ok, renew_due, grace or denied; `code` and `sentence` say why, and what to do.

    `offline_until` is the instant at which it stops without a sync, seconds UTC; None where it does not
    stop. `unreceipted_records` are on this device and not yet acknowledged by the server.

    `ledger_code` is `ledger_unwritable` where nothing can be recorded now: whatever the license allows, runs end
    when the units leased already are used up. It is None where all is well.
    """

    device: str
    state: str
    code: str | None
    sentence: str
    license: str | None
    offline_until: int | None
    next_sync_at: int | None
    models: tuple[ModelStatus, ...]
    unreceipted_records: int
    time: int
    clock_suspect: bool
    clock_provisional: bool
    ledger_code: str | None


def judge(
    tx: Transaction,
    now: Instant,
    *,
    holder: Holder,
    device: str,
    counter: Counter,
    next_sync_at: int | None,
    ledger_code: str | None,
) -> Status:
    """Put a device's status together from its ledger and what it holds now."""
    tx.only_looking = True
    token, code = _token(tx, holder)
    state = "denied"
    until = None
    models: tuple[ModelStatus, ...] = ()
    if token is not None:
        judged = standing(token, now)
        state, code = judged.state, judged.denial
        until = token.exp + token.grace_s if token.policy.expiry == "deny" else None
        models = tuple(_model(tx, token, name, counter, now) for name in [terms.name for terms in token.models])
        if code is None and models and all(model.code for model in models):
            state, code = "denied", models[0].code
    receipt = holder.receipt()
    receipted = receipt.position.seq if receipt and receipt.position.epoch == tx.epoch() else 0
    return Status(
        device=device,
        state=state,
        code=code,
        sentence=CODES[code].sentence if code else _SENTENCES[state],
        license=token.license_id if token else None,
        offline_until=until,
        next_sync_at=next_sync_at,
        models=models,
        unreceipted_records=tx.position().seq - receipted,
        time=now.effective_s,
        clock_suspect=now.suspect,
        clock_provisional=now.provisional,
        ledger_code=ledger_code,
    )


_SENTENCES = {
    "ok": "The license is in force.",
    "renew_due": "The license is in force; sync soon to renew it.",
    "grace": "The license token has ended and runs in its grace; sync now to renew it.",
}


def _token(tx: Transaction, holder: Holder) -> tuple[Token | None, str | None]:
    try:
        token = holder.current_token()
        deciding.check_serial(tx.token_before(SEQ_END), token)
    except MeterkitError as fault:
        return None, fault.code
    return token, None


def _model(tx: Transaction, token: Token, name: str, counter: Counter, now: Instant) -> ModelStatus:
    terms = token.terms(name)
    if terms is None:
        raise RuntimeError("asked for a model that the token does not name")
    decision = deciding.decide_unused(tx, token, terms, counter.unused_units(terms.meter), now)
    left = decision.left_units if not isinstance(decision, Denied) else 0
    return ModelStatus(
        name=name,
        unit=terms.unit,
        limit_units=terms.limit,
        left_units=left,
        code=decision.code if isinstance(decision, Denied) else None,
    )
