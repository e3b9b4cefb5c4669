"""An invoice, recomputed from its evidence: no server, no network, nothing taken on trust (BILLING §6).

Steps 1 to 7, the signatures and chains, are `meterkit.proof`'s. Here:

 8. the terms hold together: versions, prices, bounds, runs
 9. the rule, for every earlier document of these licenses at its own run's limits, and for this one; each
    compared with what the document says, line by line
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from meterkit import accounts, limits, money, plans
from meterkit.accounts import Account, Concession
from meterkit.attribution import Period, Run
from meterkit.canonical import from_bytes
from meterkit.documents import CREDIT_NOTE, members
from meterkit.evidence import (
    ACCOUNT,
    ACCOUNT_SHAPE,
    DECISIONS,
    INVOICE,
    INVOICE_SHAPE,
    LICENSES,
    LICENSES_SHAPE,
    RUNS,
    RUNS_SHAPE,
    Bundle,
    digest_of,
)
from meterkit.plans import Plan
from meterkit.proof import Differs, Finding, Proven, at, prove
from meterkit.recomputing import Recomputation
from meterkit.terms import Terms, Version

UNPROVEN = (
    "that no device is missing from the evidence",
    "that each device is the customer's",
)
ADDED = ("kind", "taxes", "credits", "balance_minor", "due_minor", "due", "replaces")  # by accounts
COMPUTED = ("beside", "total_minor", "total", *ADDED)
GONE = (
    "what devices used in records that are gone: the vendor's own receipts stand for them, and nothing is billed"
)
ESTIMATED = (
    "that devices used what is estimated of them: they signed nothing of it, and the vendor's own tokens and"
    " declarations say who should have reported, and how much it may have used"
)
DECIDED = "that the tax rates are the law's, and that no credit, concession or payment back is missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One line, as the invoice says it and as the evidence gives it; None where one of them has it not."""

    place: str
    stated: Mapping[str, Any] | None
    computed: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """What an audit found. `findings` is empty where every number is what the evidence proves.

    `fingerprint` names the vendor's roots; unless `pinned`, nothing here proves whose they are. `work` is what was
    worked out anew, where the audit came so far.
    """

    number: str
    fingerprint: str
    pinned: bool
    invoice: Mapping[str, Any]
    lines: tuple[Compared, ...]
    findings: tuple[Finding, ...]
    unproven: tuple[str, ...]
    work: Recomputation | None = None

    @property
    def holds(self) -> bool:
        """Whether the invoice is what its evidence proves."""
        return not self.findings


def recompute(bundle: Bundle, trusted: Collection[str] | None = None) -> AuditResult:
    """Recompute an invoice from its evidence, and compare.

    `trusted` pins the vendor's roots; without it their fingerprint is told, and is unproven. What cannot be
    calculated at all ends the audit at its first finding; differing lines are all named.
    """
    unproven: tuple[str, ...] = UNPROVEN
    if trusted is None:
        unproven += ("whose the roots are: compare the fingerprint with the vendor's own",)
    try:
        proven = prove(bundle, trusted)
        if any(replay.is_founded for replay in proven.replays.values()):
            unproven += (GONE,)
        if ACCOUNT in bundle.parts:
            unproven += (DECIDED,)
        return _recompute(bundle, proven, unproven)
    except Differs as differs:
        return AuditResult(
            number="",
            fingerprint="",
            pinned=False,
            invoice={},
            lines=(),
            findings=(differs.finding,),
            unproven=unproven,
        )


def _recompute(bundle: Bundle, proven: Proven, unproven: tuple[str, ...]) -> AuditResult:
    documents = _documents(bundle, proven)
    place, invoice = documents[-1]
    # 8. the terms hold together
    runs = _runs(bundle, documents)
    terms = _terms(bundle, runs)
    for each in terms:
        _check_periods(each)
    _check_quarantine(proven, {each.license_id for each in terms})
    # 9. the rule, document by document
    findings: list[Finding] = []
    compared: list[Compared] = []
    account = _account(bundle, documents, terms)
    again = Recomputation(terms=terms, proven=proven, account=account)
    plain = True
    for place, document in documents:
        upto = [run for run in runs if run.number <= document["run"]["number"]]
        plain = plain and _is_plain(document) and account.known_at(upto[-1]) == Account()
        settled = again.document(document["number"], upto, document["currency"], plain=plain)
        computed = members(settled, run=upto[-1], currency=document["currency"])
        compared = _compare_lines(place, document["lines"], computed["lines"])
        findings += _differences(place, compared)
        for member in COMPUTED:
            if document.get(member) != computed.get(member):
                findings.append(_says(place, member, document.get(member), computed.get(member)))
    if any(line["kind"] == "estimated" for line in invoice["lines"]):
        unproven += (ESTIMATED,)
    if invoice["evidence"] != digest_of(bundle.parts):
        findings.append(Finding(place=INVOICE, what="evidence: it was computed from other parts than these"))
    return AuditResult(
        number=proven.invoice_number,
        fingerprint=proven.vendor.fingerprint,
        pinned=proven.vendor.pinned,
        invoice=invoice,
        lines=tuple(compared),
        findings=tuple(findings),
        unproven=unproven,
        work=again,
    )


def _is_plain(document: Mapping[str, Any]) -> bool:
    """Whether a document may be from before there were accounts: it says nothing that only later ones say."""
    lines = document["lines"]
    return not any(member in document for member in ADDED) and not any("lowers" in line for line in lines)


def _documents(bundle: Bundle, proven: Proven) -> list[tuple[str, dict[str, Any]]]:
    """Every document of this customer and currency in the order of their runs; the last is the invoice."""
    found = []
    for name in [*bundle.under("earlier"), INVOICE]:
        with at(name):
            document = bundle.read(name, INVOICE_SHAPE)
            money.decimals_of(document["currency"])
        found.append((name, document))
    found.sort(key=lambda each: each[1]["run"]["number"])
    invoice = dict(found)[INVOICE]
    if found[-1][0] != INVOICE:
        raise Differs(found[-1][0], "its run is not before the invoice's")
    if (invoice["number"], invoice["finalized_at"]) != (proven.invoice_number, proven.signed_at):
        raise Differs(INVOICE, "its number or date is not the manifest's")
    for name, document in found[:-1]:
        if name != f"earlier/{document['number']}.json" or document["number"] == invoice["number"]:
            raise Differs(name, "its number is not its name's")
        for member in ("customer", "currency"):
            if document[member] != invoice[member]:
                raise Differs(name, f"another {member} than the invoice's")
    for name, document in found:
        if document["number"].startswith("CN-") != (document.get("kind") == CREDIT_NOTE):
            raise Differs(name, f"{document['number']} is a number of the other series")
    return found


def _runs(bundle: Bundle, documents: list[tuple[str, dict[str, Any]]]) -> list[Run]:
    with at(RUNS):
        stated = bundle.read(RUNS, RUNS_SHAPE)
    runs = [Run(**each) for each in stated]
    for before, after in pairwise(runs):
        if before.number >= after.number:
            raise Differs(RUNS, f"run {after.number} does not follow run {before.number}")
        if before.cut_off > after.cut_off or before.acceptance_max > after.acceptance_max:
            raise Differs(RUNS, f"run {after.number}: its limits go back")
    for name, document in documents:
        if Run(**document["run"]) not in runs:
            raise Differs(name, f"run {document['run']['number']} is not the one in {RUNS}")
    if runs[-1].number != documents[-1][1]["run"]["number"]:
        raise Differs(RUNS, "its last run is not the invoice's")
    return runs


def _terms(bundle: Bundle, runs: list[Run]) -> list[Terms]:
    with at(LICENSES):
        stated = bundle.read(LICENSES, LICENSES_SHAPE)
    known = {name: _plan(bundle, name) for name in bundle.under("plans")}
    found = []
    for each in stated:
        place = f"{LICENSES} {each['license']}"
        versions = []
        for version in each["versions"]:
            name = f"plans/{version['plan']}.{version['version']}.json"
            if name not in known:
                raise Differs(place, f"{name} is missing")
            versions.append(
                Version(
                    plan_id=version["plan"],
                    number=version["version"],
                    starts_at=version["starts_at"],
                    plan=known[name],
                    since_run=version.get("since_run", 0),
                    correction=version.get("correction"),
                )
            )
        _check_timeline(place, each["starts_at"], versions, runs)
        periods = tuple(Period(**period) for period in each["periods"])
        found.append(
            Terms(license_id=each["license"], ends_at=each["ends_at"], versions=tuple(versions), periods=periods)
        )
    if len({each.license_id for each in found}) != len(found):
        raise Differs(LICENSES, "a license stands twice")
    return found


def _check_timeline(place: str, starts_at: int, versions: list[Version], runs: list[Run]) -> None:
    """Versions follow one another, the first from the start; only named corrections start in the past."""
    timeline = [each for each in versions if each.correction is None]
    corrections = [each for each in versions if each.correction is not None]
    if versions != timeline + corrections or not timeline or timeline[0].starts_at != starts_at:
        raise Differs(place, "its first version does not count from its start")
    if timeline[0].since_run or any(one.starts_at >= two.starts_at for one, two in pairwise(timeline)):
        raise Differs(place, "its versions do not follow one another")
    for each in timeline[1:]:
        if any(run.number < each.since_run and run.cut_off > each.starts_at for run in runs):
            raise Differs(place, f"the version from {each.starts_at} starts in the past, and is no correction")
    names = {each.correction for each in corrections}
    if len(names) < len(corrections) or any(one.since_run > two.since_run for one, two in pairwise(corrections)):
        raise Differs(place, "its corrections are not in the order in which they were decided")


def _plan(bundle: Bundle, name: str) -> Plan:
    with at(name):
        return plans.read(from_bytes(bundle.parts[name], bytes_max=limits.FILE_BYTES_MAX))


def _check_periods(terms: Terms) -> None:
    """Bounds join without gap or overlap, each piece lies in its whole, and none goes on past a new version."""
    place = f"{LICENSES} {terms.license_id}"
    lines: dict[str, list[Period]] = {}
    changes = {each.starts_at for each in terms.versions if each.starts_at > terms.versions[0].starts_at}
    for period in terms.periods:
        inside = period.whole_start_at <= period.start_at < period.end_at <= period.whole_end_at
        if not inside:
            raise Differs(place, f"{period.interval} from {period.start_at}: its bounds do not hold")
        if any(period.start_at < at < period.end_at for at in changes):
            raise Differs(place, f"{period.interval} from {period.start_at}: a new version counts within it")
        lines.setdefault(period.interval, []).append(period)
    for interval, line in lines.items():
        if line[0].nth != 0:
            raise Differs(place, f"{interval}: the first period is not the first")
        for one, two in pairwise(line):
            same = two.nth == one.nth and two.whole_start_at == one.whole_start_at
            same = same and two.whole_end_at == one.whole_end_at
            following = two.nth == one.nth + 1 and one.end_at == one.whole_end_at
            if one.end_at != two.start_at or not (same or following):
                raise Differs(place, f"{interval} from {two.start_at}: it does not join the period before")


def _check_quarantine(proven: Proven, license_ids: Collection[str]) -> None:
    """What is kept out of the sums is what the rule sets aside: no record more, and none less."""
    known = {token.jti: token for token in proven.tokens}
    for device, replay in proven.replays.items():
        stated = proven.quarantined.get(device, frozenset())
        suspects = replay.suspects(license_ids, known)
        for epoch, record in sorted(suspects - stated):
            raise Differs(DECISIONS, f"{device} {epoch}: record {record} must be quarantined, and is not")
        for epoch, record in sorted(replay.of_licenses(stated, license_ids) - suspects):
            raise Differs(DECISIONS, f"{device} {epoch}: record {record} is quarantined without a reason")


def _account(
    bundle: Bundle, documents: list[tuple[str, dict[str, Any]]], known_terms: Collection[Terms]
) -> Account:
    """What was decided about the account; a document that is void from a run on is one of those here."""
    if ACCOUNT not in bundle.parts:
        return Account()
    with at(ACCOUNT):
        account = accounts.from_claims(bundle.read(ACCOUNT, ACCOUNT_SHAPE))
    _check_named_once(account)
    for each in account.concessions:
        _check_concession(each, known_terms)
    known = {document["number"]: document["run"]["number"] for _, document in documents[:-1]}
    for void in account.voids:
        if known.get(void.number, void.since_run) >= void.since_run:
            raise Differs(ACCOUNT, f"void {void.number}: there is no such document before run {void.since_run}")
    return account


def _check_concession(concession: Concession, known_terms: Collection[Terms]) -> None:
    """What was let off was let off on a version that its license held by then."""
    key = concession.key
    held = {
        (terms.license_id, each.plan_id, each.number)
        for terms in known_terms
        for each in terms.versions
        if each.since_run <= concession.since_run
    }
    if key.kind != "concession" or (key.license_id, key.plan_id, key.version) not in held:
        raise Differs(ACCOUNT, f"concession on {key.charge}: {key.license_id} held no such version")


def _check_named_once(account: Account) -> None:
    """What is looked for by name, or by when it counts, is there once: its order in the evidence says nothing."""
    for what, named in (
        ("a credit", [each.id for each in account.credits]),
        ("a void document", [each.number for each in account.voids]),
        ("a tax rate", [(each.starts_at, each.since_run) for each in account.tax_rates]),
    ):
        if len(set(named)) != len(named):
            raise Differs(ACCOUNT, f"{what} stands twice")


def _name(line: Mapping[str, Any]) -> tuple[Any, ...]:
    members = ("license", "service_start_at", "service_end_at", "charge", "plan", "version", "kind")
    return tuple(line[member] for member in members)


def _compare_lines(place: str, stated: list[dict[str, Any]], computed: list[dict[str, Any]]) -> list[Compared]:
    """Put the lines of a document beside the computed ones; each is found by its key."""
    wanted = {_name(line): line for line in computed}
    found = []
    for number, line in enumerate(stated, start=1):
        own = wanted.pop(_name(line), None)
        found.append(Compared(place=f"{place} line {number}", stated=line, computed=own))
    found += [Compared(place=place, stated=None, computed=line) for line in wanted.values()]
    return found


def _differences(place: str, compared: list[Compared]) -> list[Finding]:
    findings = []
    for each in compared:
        if each.computed is None:
            findings.append(Finding(place=each.place, what="the evidence gives no such line"))
        elif each.stated is None:
            what = f"a line is missing: {each.computed['description']}, from {each.computed['service_start_at']}"
            findings.append(Finding(place=place, what=what))
        else:
            findings += [
                _says(each.place, member, each.stated.get(member), each.computed.get(member))
                for member in {**each.computed, **each.stated}
                if each.stated.get(member) != each.computed.get(member)
            ]
    stated = [each.computed for each in compared if each.stated is not None and each.computed is not None]
    if not findings and [_name(line) for line in stated] != sorted(_name(line) for line in stated):
        findings.append(Finding(place=place, what="its lines are not in their order"))
    return findings


def _says(place: str, member: str, stated: Any, computed: Any) -> Finding:
    def show(value: Any) -> str:
        text = str(value)
        return text if len(text) <= 200 else f"{text[:200]}…"

    return Finding(place=place, what=f"{member}: it says {show(stated)}, the evidence gives {show(computed)}")
