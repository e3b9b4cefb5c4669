"""May this run, now? Every reason in its order, and every bound to the unit."""

from itertools import product
from typing import Any

import pytest
from core_world import ADDRESSEE, DAY_S, KEYRING, NOT_REVOKED, NOW, instant, model_claims, token_claims, token_text
from hypothesis import given
from hypothesis import strategies as st

from meterkit import tokens
from meterkit.entitlements import Allowed, Decision, Denied, Used, decide
from meterkit.errors import CODES, DenialError
from meterkit.tokens import Token

EXP = NOW + 29 * DAY_S
GRACE_END = EXP + 7 * DAY_S


def token(units_max: int | None = 1000, **policy: str) -> Token:
    claims = token_claims(
        models=[model_claims(limit=units_max)],
        policy={"expiry": "deny", "limit": "deny", "clock": "deny", **policy},
    )
    genuine = tokens.open_genuine(
        token_text(claims), keyring=KEYRING, addressee=ADDRESSEE, revocations=NOT_REVOKED, serial_min=0
    )
    return genuine.token


def ask(
    terms: Token | None, used: int = 0, want: int = 1, *, model: str = "detector", anchored: bool = True, **at: Any
) -> Decision:
    return decide(terms, model, Used(units=used, anchored=anchored), want, instant(**at))


LIMITED = token()
UNLIMITED = token(None)
FLAGGED = token(limit="flag")
LENIENT = token(expiry="flag", limit="flag", clock="flag")


def test_without_a_token_nothing_runs():
    assert ask(None) == Denied(code="not_activated")


@pytest.mark.parametrize(
    ("used", "want", "left"), [(0, 1, 1000), (0, 1000, 1000), (999, 1, 1), (1000, 0, 0), (400, 600, 600)]
)
def test_a_call_within_the_limit_runs(used, want, left):
    assert ask(LIMITED, used, want) == Allowed(state="ok", left_units=left)


@pytest.mark.parametrize(("used", "want"), [(0, 1001), (999, 2), (1000, 1), (5000, 1), (400, 601)])
def test_a_call_beyond_it_is_denied_whole(used, want):
    denied = ask(LIMITED, used, want)
    assert isinstance(denied, Denied)
    assert denied.code == "limit_reached"
    assert denied.detail == f"{want} more units of detector, {max(0, 1000 - used)} of 1000 left"


@pytest.mark.parametrize(("used", "want"), [(0, 1001), (1000, 1), (5000, 1)])
def test_or_runs_and_is_flagged(used, want):
    assert ask(FLAGGED, used, want) == Allowed(state="ok", left_units=None, flags=("over_limit",))
    assert ask(FLAGGED, 0, 1) == Allowed(state="ok", left_units=1000)


def test_no_limit_is_no_limit():
    assert ask(UNLIMITED, 2**53, 2**40) == Allowed(state="ok", left_units=None)


def test_a_ledger_that_the_token_does_not_continue_has_nothing_left():
    assert ask(LIMITED, anchored=False) == Denied(code="ledger_unanchored")
    assert ask(FLAGGED, anchored=False) == Allowed(state="ok", left_units=None, flags=("over_limit",))
    assert ask(UNLIMITED, anchored=False) == Allowed(state="ok", left_units=None)


def test_a_model_that_is_not_in_the_token_is_denied_under_any_policy():
    assert ask(LENIENT, model="segmenter") == Denied(code="model_not_licensed", detail="segmenter")


@pytest.mark.parametrize(
    ("at_s", "expect"),
    [
        (NOW - DAY_S - 1, "token_not_yet_valid"),
        (NOW - DAY_S, "ok"),
        (EXP - 6 * DAY_S, "renew_due"),
        (EXP, "grace"),
        (GRACE_END - 1, "grace"),
        (GRACE_END, "token_expired"),
    ],
)
def test_time_decides_to_the_second(at_s, expect):
    decision = ask(LIMITED, at_s=at_s)
    assert (decision.code if isinstance(decision, Denied) else decision.state) == expect


def test_flags_say_everything_that_was_let_pass():
    decision = ask(LENIENT, 1000, 1, at_s=GRACE_END, suspect=True)
    assert decision == Allowed(state="grace", left_units=None, flags=("over_limit", "expired", "clock"))
    assert ask(LENIENT, at_s=EXP) == Allowed(state="grace", left_units=1000, flags=("grace",))


ORDER = [code for code, meaning in CODES.items() if meaning.family == "denial"]


@pytest.mark.parametrize("suspect", [False, True])
@pytest.mark.parametrize("at_s", [0, NOW, GRACE_END])
def test_of_several_reasons_the_one_listed_first_is_named(suspect, at_s):
    for model, anchored, used in product(("detector", "other"), (True, False), (0, 1000)):
        reasons = {
            "clock_rolled_back": suspect,
            "token_not_yet_valid": at_s == 0,
            "token_expired": at_s == GRACE_END,
            "model_not_licensed": model == "other",
            "ledger_unanchored": not anchored,
            "limit_reached": used == 1000,
        }
        first = next((code for code in ORDER if reasons.get(code)), None)
        decision = ask(LIMITED, used, model=model, anchored=anchored, at_s=at_s, suspect=suspect)
        assert (decision.code if isinstance(decision, Denied) else None) == first


@given(st.integers(0, 2000), st.integers(1, 2000))
def test_what_is_left_is_what_may_still_be_asked_for(used, want):
    decision = ask(LIMITED, used, want)
    assert isinstance(decision, Allowed) == (used + want <= 1000)
    if isinstance(decision, Allowed):
        assert isinstance(ask(LIMITED, used, decision.left_units), Allowed)
        assert isinstance(ask(LIMITED, used, decision.left_units + 1), Denied)


@given(st.lists(st.integers(1, 300), max_size=30))
def test_never_are_more_units_admitted_than_the_limit(wants):
    used = 0
    for want in wants:
        if isinstance(ask(LIMITED, used, want), Allowed):
            used += want
    assert used <= 1000


def test_a_denial_becomes_the_error_that_the_gate_raises():
    error = Denied(code="limit_reached", detail="x").error()
    assert isinstance(error, DenialError)
    assert (error.code, error.detail) == ("limit_reached", "x")
