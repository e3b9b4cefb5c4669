"""Documents that settle: each rule worked by hand, and what must be so of any life of an account (BILLING §3)."""

from dataclasses import replace
from itertools import permutations

import pytest
from billing_terms import DAY
from document_book import MONTH, Book, key, line
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meterkit.accounts import Account, Credit, Dispute, History, Refund, Void, from_claims
from meterkit.attribution import Run
from meterkit.canonical import from_bytes, to_bytes
from meterkit.documents import Bills, members, settle
from meterkit.evidence import ACCOUNT_SHAPE
from meterkit.taxes import Tax, TaxRate, in_force

CHARGES = ("calls", "fee")
RUN = Run(number=5, cut_off=10 * MONTH, acceptance_max=0)
VAT = Tax(name="VAT", percent="19")


def settled(*lines, account=None, history=None, run=RUN):
    bills = Bills(lines=tuple(lines), beside=())
    return settle(bills, run=run, account=account or Account(), history=history or History())


def rates(*named: tuple[int, str]) -> tuple[TaxRate, ...]:
    return tuple(TaxRate(starts_at=at, since_run=1, name="VAT", percent=percent) for at, percent in named)


def book_of(month_0: int, percent: str | None = None) -> Book:
    """A book with one invoice over January's calls."""
    book = Book()
    if percent is not None:
        book.tax(percent)
    book.owed[key()] = month_0
    book.run(30)
    return book


# -- taxes (§3)


@pytest.mark.parametrize(
    ("percent", "base", "tax"),
    [
        ("7", 99, 7),  # 6.93; of three lines of 33 each alone 2.31, which would make 6
        ("1", 50, 1),  # 0.5: half away from zero
        ("1", -50, -1),
        ("1", 49, 0),
        ("10", 105, 11),  # 105 yen: 10.5 yen; 0.105 dinars: 0.0105
        ("8.875", 1000, 89),  # 88.75
        ("0", 1000, 0),
        ("100", 1, 1),
    ],
)
def test_a_tax_is_rounded_half_away_from_zero(percent, base, tax):
    assert Tax(name="T", percent=percent).on(base) == tax


def test_tax_is_summed_per_rate_and_rounded_once():
    """Three lines of 0.33 at 7 % are 0.0693 on 0.99: 0.07. Line by line 0.0231 each: it would be 0.06."""
    made = settled(*(line(key(name), 33) for name in "abc"), account=Account(tax_rates=rates((0, "7"))))
    assert [(each.base_minor, each.tax_minor) for each in made.taxes] == [(99, 7)]
    assert (made.subtotal_minor, made.tax_minor, made.total_minor, made.due_minor) == (99, 7, 106, 106)


def test_two_rates_are_two_sums():
    """0.50 at 19 % is 0.095, 0.10; 0.50 at 16 % is 0.08. Together at either rate it would be 0.19, or 0.16."""
    account = Account(tax_rates=rates((0, "19"), (MONTH, "16")))
    made = settled(line(key(), 50), line(key(month=1), 50), account=account)
    assert [(each.tax.percent, each.tax_minor) for each in made.taxes] == [("16", 8), ("19", 10)]


def test_the_rate_is_the_one_where_the_period_ends_and_a_period_is_half_open():
    """A rate that counts from 1 February does not touch January, which ends there; it does touch February."""
    known = rates((0, "19"), (MONTH, "16"))
    assert in_force(known, MONTH, 1) == VAT
    assert in_force(known, MONTH + 1, 1) == Tax(name="VAT", percent="16")
    assert in_force(known, 0, 1) is None


def test_a_rate_that_changes_within_a_period_counts_for_all_of_it():
    account = Account(tax_rates=rates((0, "19"), (MONTH - 1, "16")))
    assert settled(line(key(), 100), account=account).taxes[0].tax.percent == "16"


def test_a_run_does_not_know_what_was_decided_after_it():
    known = (
        TaxRate(starts_at=0, since_run=1, name="VAT", percent="19"),
        TaxRate(starts_at=0, since_run=6, name="VAT", percent="16"),
    )
    account = Account(tax_rates=known)
    assert settled(line(key(), 100), account=account).tax_minor == 19
    assert settled(line(key(), 100), account=account, run=replace(RUN, number=6)).tax_minor == 16
    assert account.known_at(RUN).tax_rates == known[:1]


@pytest.mark.parametrize(("currency", "total"), [("JPY", "116"), ("EUR", "1.16"), ("KWD", "0.116")])
def test_amounts_have_their_currency_s_decimals(currency, total):
    """105 and 10 % of it: 10.5, so 11 of the smallest coin there is, whatever it is worth."""
    account = Account(tax_rates=rates((0, "10")), credits=(credit("a", 16),))
    made = settled(line(key(), 105), account=account)
    found = members(made, run=RUN, currency=currency)
    assert (found["total_minor"], found["total"], found["due_minor"]) == (116, total, 100)
    assert found["due"] == {"JPY": "100", "EUR": "1.00", "KWD": "0.100"}[currency]


def test_a_document_says_nothing_of_what_there_is_nothing_to_say():
    found = members(settled(line(key(), 105)), run=RUN, currency="EUR")
    assert found.keys() == {"currency", "run", "lines", "beside", "total_minor", "total"}
    assert not {"tax", "lowers"} & found["lines"][0].keys()


# -- credit notes (§3, §5)


def test_tax_on_credit_notes_is_rounded_over_all_that_was_credited():
    """Of 10.00 at 19 %, three times 0.03 are let off. On 0.03 the tax is 0.0057, 0.01; on 0.06 0.0114, 0.01; on
    0.09 0.0171, 0.02. So the notes credit 0.01, nothing, and 0.01; each by itself would be 0.03 in all."""
    book = book_of(1000, "19")
    taxes = []
    for place in range(3):
        book.owed[key()] -= 3
        _, note = book.run(31 + place)
        taxes.append([(each.base_minor, each.tax_minor, each.lowers) for each in note.taxes])
    assert taxes == [[(-3, -1, "INV-000001")], [(-3, 0, "INV-000001")], [(-3, -1, "INV-000001")]]


def test_a_line_that_lowers_another_takes_its_rate_also_within_an_invoice():
    """January at 19 % falls by 1.00; February is 3.00, and by now every rate is 16 %. So 3.00 at 16 % is 0.48, and
    −1.00 at 19 % −0.19: 2.29."""
    book = book_of(500, "19")
    book.tax("16")
    book.owed |= {key(): 400, key(month=1): 300}
    _, made = book.run(60)
    assert [(each.lowers, each.tax.percent) for each in made.lines] == [("INV-000001", "19"), (None, "16")]
    assert (made.kind, made.total_minor) == ("invoice", 229)
    assert [each.lowers for each in made.taxes] == [None, None]


def test_a_line_is_lowered_where_it_was_last_raised():
    """Billed 1.00 at 19 % in INV-000001 and 1.00 more at 16 % in INV-000002: what falls, falls at 16 %."""
    book = book_of(100, "19")
    book.tax("16")
    book.owed[key()] = 200
    book.run(31)
    book.owed[key()] = 190
    _, note = book.run(32)
    assert [(each.tax.percent, each.lowers) for each in note.taxes] == [("16", "INV-000002")]


def test_a_concession_takes_the_rate_of_the_last_document_that_raised_its_charge():
    """By number as text, INV-999999 would come after INV-1000000."""
    history = History()
    history.add_line("INV-999999", key(kind="recurring"), 100, VAT)
    history.add_line("INV-1000000", key(), 100, Tax(name="VAT", percent="16"))
    assert history.raised_by(key(kind="concession")).number == "INV-1000000"
    history.add_line("INV-1000001", key(kind="recurring"), 1, VAT)
    assert history.raised_by(key(kind="concession")).number == "INV-1000001"
    assert history.raised_by(key(charge="other", kind="concession")) is None


def test_what_is_a_credit_note_only_by_rounding_it_alone_is_an_invoice():
    """Credited before: 0.03 at 19 % and 0.04 at 16 %, each with a tax of 0.01. Now 0.03 and 0.04 again, and 0.08
    untaxed: 0.01 before tax. Rounded alone the taxes are −0.02, a total of −0.01. Over all that was credited they
    are 0.0114 and 0.0128: 0.01 each, which was credited already. So the total is 0.01, and it is to be paid."""
    history = History()
    for percent, base, name in (("19", 3, "calls"), ("16", 4, "fee")):
        tax = Tax(name="VAT", percent=percent)
        history.add_line("INV-000001", key(name), 100, tax)
        history.credited["INV-000001", tax] = (-base, -1)
    lines = (line(key(), 97, 100), line(key("fee"), 96, 100), line(key("new"), 8))
    made = settled(*lines, history=history)
    assert (made.kind, made.total_minor, made.due_minor) == ("invoice", 1, 1)
    assert [each.tax_minor for each in made.taxes] == [0, 0]


def test_a_credit_note_goes_to_the_balance_and_the_balance_pays_after_tax():
    """4.00 of 10.00 are credited with 0.76: 4.76. Of 5.00 and 0.95 that pays 4.76, and 1.19 are due."""
    book = book_of(1000, "19")
    book.owed[key()] = 600
    _, note = book.run(31)
    assert (note.kind, note.total_minor, note.balance_minor, note.due_minor) == ("credit_note", -476, -476, 0)
    book.owed[key(month=1)] = 500
    _, made = book.run(60)
    assert (made.total_minor, made.balance_minor, made.due_minor) == (595, 476, 119)
    assert book.balance() == 0


def test_what_was_paid_back_pays_nothing_more():
    book = book_of(1000)
    book.owed[key()] = 600
    book.run(31)
    book.refund(399)
    book.owed[key(month=1)] = 500
    _, made = book.run(60)
    assert (made.balance_minor, made.due_minor) == (1, 499)


# -- prepaid credits (§5)


def credit(name: str, amount: int, **named) -> Credit:
    values = {"priority": 0, "starts_at": 0, "expires_at": None, "purchased_at": 0, "since_run": 1} | named
    return Credit(id=name, amount_minor=amount, **values)


def uses(made) -> list[tuple[str, int]]:
    return [(use.credit, use.amount_minor) for use in made.credits]


def test_credits_are_used_by_priority_then_expiry_then_purchase_then_id():
    ordered = (
        credit("z", 1, priority=0, expires_at=9 * MONTH, purchased_at=9),
        credit("y", 1, priority=1, expires_at=8 * MONTH, purchased_at=9),
        credit("x", 1, priority=1, expires_at=9 * MONTH, purchased_at=7),
        credit("v", 1, priority=1, expires_at=9 * MONTH, purchased_at=8),
        credit("w", 1, priority=1, expires_at=9 * MONTH, purchased_at=8),
        credit("u", 1, priority=1, expires_at=None, purchased_at=0),
    )
    for mixed in permutations(ordered):
        made = settled(line(key(), 100), account=Account(credits=mixed))
        assert uses(made) == [(each.id, 1) for each in ordered]


def test_a_credit_pays_after_tax_and_is_no_part_of_a_line():
    """1.00 at 19 % is 1.19; a credit of 1.00 leaves 0.19. Taken before tax it would leave nothing."""
    account = Account(tax_rates=rates((0, "19")), credits=(credit("a", 100),))
    made = settled(line(key(), 100), account=account)
    assert (made.taxes[0].base_minor, made.due_minor) == (100, 19)


@pytest.mark.parametrize(
    ("starts_at", "expires_at", "paid"),
    [
        (MONTH, None, True),
        (MONTH + 1, None, False),  # the period began before it
        (0, MONTH + 1, True),
        (0, MONTH, False),  # it was over when the period began
    ],
)
def test_a_credit_pays_for_periods_that_began_in_its_validity(starts_at, expires_at, paid):
    own = credit("a", 100, starts_at=starts_at, expires_at=expires_at)
    made = settled(line(key(month=1), 50), account=Account(credits=(own,)), run=replace(RUN, cut_off=2 * MONTH))
    assert uses(made) == ([("a", 50)] if paid else [])


@pytest.mark.parametrize(("after", "paid"), [(90 * DAY - 1, True), (90 * DAY, False)])
def test_a_credit_pays_for_late_lines_until_90_days_after_its_end(after, paid):
    own = credit("a", 100, expires_at=MONTH)
    made = settled(line(key(), 50), account=Account(credits=(own,)), run=replace(RUN, cut_off=MONTH + after))
    assert bool(made.credits) is paid


def test_no_line_is_paid_twice_nor_is_what_another_line_takes_off():
    """January 3.00, February 2.00, and −1.00 on an older key: 4.00. The −1.00 meets January first, so a credit for
    January only pays 2.00, and one for all the 2.00 that are left."""
    history = History()
    history.add_line("INV-000001", key("fee"), 100, None)
    first = credit("a", 900, expires_at=1)
    second = credit("b", 900)
    lines = (line(key(), 300), line(key("fee"), 0, 100), line(key(month=1), 200))
    account = Account(credits=(first, second))
    made = settled(*lines, account=account, history=history, run=replace(RUN, cut_off=2 * MONTH))
    assert (made.total_minor, uses(made), made.due_minor) == (400, [("a", 200), ("b", 200)], 0)


def test_what_a_credit_paid_is_given_back_to_it_in_reverse_and_the_rest_to_the_balance():
    """10.00 were paid by 6.00 of a, 3.00 of b and 1.00 of money. Of 9.50 3.00 go to b, 6.00 to a, and 0.50
    to the balance. What is credited after that all goes there."""
    book = Book()
    book.credit(600)
    book.credit(300, priority=1)
    book.owed[key()] = 1000
    book.run(30)
    book.owed[key()] = 50
    _, note = book.run(31)
    assert uses(note) == [("cred_01", -300), ("cred_00", -600)]
    assert [use.lowers for use in note.credits] == ["INV-000001"] * 2
    assert note.balance_minor == -50
    book.owed[key()] = 0
    _, note = book.run(32)
    assert (uses(note), note.balance_minor) == ([], -50)


def test_a_credit_gets_back_no_more_than_it_paid_for_the_invoice_that_is_lowered():
    """a paid 1.00 for January and 5.00 for February. January falls to nothing: a gets 1.00 of it, not 5.00."""
    book = Book()
    book.credit(600)
    book.owed[key()] = 100
    book.run(30)
    book.owed[key(month=1)] = 500
    book.run(60)
    book.owed[key()] = 0
    _, note = book.run(61)
    assert (uses(note), note.balance_minor) == ([("cred_00", -100)], 0)


def test_a_credit_gets_back_no_more_than_its_invoice_is_lowered_by():
    """a paid 5.00 for January and b 5.00 for February. January falls by 1.00 and February by 3.00: 1.00 and 3.00
    go back, not 4.00 to the first."""
    book = Book()
    book.credit(500, expires_at=1)
    book.credit(500)
    book.owed[key()] = 500
    book.run(30)
    book.owed[key(month=1)] = 500
    book.run(60)
    book.owed |= {key(): 400, key(month=1): 200}
    _, note = book.run(61)
    assert uses(note) == [("cred_00", -100), ("cred_01", -300)]


# -- void documents (§5)


def test_a_void_document_is_as_if_it_had_never_been():
    """Billed at 19 % with a credit, void, the rate is 16 % by then: the next document is a first one, at 16 %."""
    book = Book()
    book.tax("19")
    book.credit(50)
    book.owed[key()] = 100
    number, first = book.run(30)
    assert first.due_minor == 69
    assert book.void(number)
    book.tax("16")
    _, again = book.run(31)
    assert (again.total_minor, uses(again), again.replaces) == (116, [("cred_00", 50)], (number,))
    book.owed[key(month=1)] = 10
    _, third = book.run(60)
    assert third.replaces == ()


def test_an_overdrawn_credit_is_not_drawn_on():
    """It cannot come about, but in evidence that was made up."""
    history = History(used={"INV-000001": {"a": 150}})
    made = settled(line(key(), 50), account=Account(credits=(credit("a", 100),)), history=history)
    assert made.credits == ()


# -- accounts as evidence


def test_an_account_survives_its_evidence():
    about = key()
    account = Account(
        tax_rates=rates((0, "19")),
        credits=(credit("cred_" + "a" * 26, 5, expires_at=9),),
        refunds=(Refund(amount_minor=3, since_run=2),),
        voids=(Void(number="INV-000001", since_run=2),),
        disputes=(Dispute(key=about, since_run=2, until_run=3), Dispute(key=about, since_run=4, until_run=None)),
    )
    book = Book(account=account)
    book.concede(about, 7)
    claims = from_bytes(to_bytes(book.account.to_claims()), bytes_max=10**6)
    ACCOUNT_SHAPE(claims, "account")
    assert from_claims(claims) == book.account


@pytest.mark.parametrize(("number", "holds"), [(1, False), (2, True), (3, True), (4, False)])
def test_a_dispute_holds_from_a_run_until_another(number, holds):
    dispute = Dispute(key=key(), since_run=2, until_run=4)
    run = replace(RUN, number=number)
    assert dispute.holds(run) is holds
    assert dispute.known_at(run).until_run == (None if holds else 4)
    assert Account(disputes=(dispute,)).known_at(run).disputes == (() if number == 1 else (dispute.known_at(run),))


# -- any life of an account


owings = st.tuples(st.just("owe"), st.sampled_from(CHARGES), st.integers(0, 2), st.integers(0, 130))
decisions = st.one_of(
    st.tuples(
        st.just("tax"),
        st.sampled_from(["19", "16", "7.5", "0", "33.3333"]),
        st.sampled_from([-1, MONTH, MONTH + 1, 2 * MONTH]),
        st.sampled_from(["VAT", "GST"]),
    ),
    st.tuples(
        st.just("credit"),
        st.integers(1, 200),
        st.integers(0, 1),
        st.sampled_from([0, MONTH]),
        st.sampled_from([None, MONTH + 1, 2 * MONTH]),
        st.integers(0, 1),
    ),
    st.tuples(st.just("void"), st.integers(0, 9)),
    st.tuples(st.just("refund"), st.integers(1, 100)),
    st.tuples(st.just("concede"), st.integers(0, 9), st.integers(1, 60)),
)


@st.composite
def lives(draw):
    """What happens to an account: what is owed changes, decisions fall, a run bills; and so on."""
    life = []
    for _ in range(draw(st.integers(2, 8))):
        life += draw(st.lists(owings, min_size=1, max_size=3))
        life += draw(st.lists(decisions, max_size=2))
        life.append(("run",))
    return life


def owe(book: Book, charge: str, month: int, minor: int) -> None:
    book.owed[key(charge, month)] = minor


def buy(book: Book, minor: int, *named: int | None) -> None:
    book.credit(minor, **dict(zip(("priority", "starts_at", "expires_at", "purchased_at"), named, strict=True)))


def take_back(book: Book, which: int) -> None:
    standing = book.standing()
    if standing:
        book.void(standing[which % len(standing)][1])


def pay_back(book: Book, minor: int) -> None:
    if book.balance():
        book.refund(min(minor, book.balance()))


def let_off(book: Book, which: int, minor: int) -> None:
    billed = sorted(about for about, billed in book.billed().items() if billed > 0)
    if billed:
        book.concede(billed[which % len(billed)], minor)


MOVES = {"owe": owe, "tax": Book.tax, "credit": buy, "void": take_back, "refund": pay_back, "concede": let_off}


def play(life) -> Book:
    book = Book()
    for kind, *rest in [*life, ("run",)]:
        if kind == "run":
            book.run(20 * book.next_run)
        else:
            MOVES[kind](book, *rest)
    return book


@settings(max_examples=300)
@given(life=lives())
@example(life=[("owe", "calls", 0, 100), ("run",), ("owe", "calls", 0, 50), ("run",), ("void", 1), ("void", 0)])
def test_whatever_happens_each_document_is_by_the_rules(life):
    """`Book.judge` looks at each one; here at what they come to together."""
    book = play(life)
    billed = book.billed()
    assert all(billed.get(about, 0) == owed for about, owed in book.owed.items())
    total = sum(made.total_minor for _, _, made in book.standing())
    due = sum(made.due_minor for _, _, made in book.standing())
    paid_back = sum(each.amount_minor for each in book.account.refunds)
    assert total == due + sum(book.used().values()) - book.balance() - paid_back


@settings(max_examples=150)
@given(life=lives(), chance=st.randoms(use_true_random=False))
def test_the_order_of_decisions_before_a_run_does_not_matter(life, chance):
    book = play(life)
    book.owed[key("new", 1)] = 100
    run = Run(number=book.next_run, cut_off=20 * MONTH, acceptance_max=0)
    bills = Bills(lines=book.lines(), beside=())
    mixed = Account(
        **{name: tuple(chance.sample(decided, len(decided))) for name, decided in vars_of(book.account).items()}
    )
    made = [settle(bills, run=run, account=each, history=book.history()) for each in (book.account, mixed)]
    assert made[0] == made[1]
    assert mixed.conceded(run) == book.account.conceded(run)


def vars_of(account: Account) -> dict[str, tuple]:
    return {name: getattr(account, name) for name in account.__dataclass_fields__}


@settings(max_examples=150)
@given(life=lives(), owed=st.integers(1, 200))
def test_a_void_document_leaves_no_trace(life, owed):
    """Beside a life in which it never was, the next document differs in nothing but in what it replaces."""
    never, was = play(life), play(life)
    was.owed[key("new", 1)] = owed
    made = was.run(21 * 20)
    assert made is not None
    never.runs.append(was.runs[-1])
    if not was.void(made[0]):
        return
    for book in (never, was):
        book.owed[key("new", 1)] = owed + 1
    (_, one), (_, two) = (book.run(22 * 20) for book in (never, was))
    assert replace(one, replaces=()) == replace(two, replaces=())
    assert set(two.replaces) - set(one.replaces) == {made[0]}


def test_lives_come_to_what_they_are_to_try():
    """A generator that never reaches a rule tests nothing: so many lives have each of these."""
    seen = dict.fromkeys(
        ("credit note", "given back", "balance used", "void", "refused", "two rates", "refund"), 0
    )

    @settings(max_examples=300, database=None, derandomize=True)
    @given(life=lives())
    def look(life):
        book = play(life)
        made = [each for _, _, each in book.documents]
        seen["credit note"] += any(each.kind == "credit_note" for each in made)
        seen["given back"] += any(use.amount_minor < 0 for each in made for use in each.credits)
        seen["balance used"] += any(each.balance_minor > 0 for each in made)
        seen["void"] += bool(book.account.voids)
        seen["refused"] += book.refused > 0
        seen["two rates"] += any(len(each.taxes) > 1 for each in made)
        seen["refund"] += bool(book.account.refunds)

    look()
    assert min(seen.values()) >= 5, seen
