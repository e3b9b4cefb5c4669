"""The documents of a customer, one after another, worked out anew from what its evidence proves (BILLING §3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from meterkit import estimates, exposure, invoices
from meterkit.accounts import Account, History
from meterkit.attribution import Calendar, Record, Run, TokenSpan, gather
from meterkit.documents import Bills, Settled, as_before_accounts, settle
from meterkit.estimates import Estimates, Gap
from meterkit.lateness import closed_by, deadlines
from meterkit.licenses import Meter
from meterkit.lines import Beside, Line, billed_before, of_license
from meterkit.proof import Proven
from meterkit.replay import Replay
from meterkit.terms import Terms


@dataclass(slots=True, kw_only=True)
class Recomputation:
    """What is known of a customer, and the documents that were worked out of it so far, in the order of runs."""

    terms: Sequence[Terms]
    proven: Proven
    account: Account
    done: list[tuple[str, Settled]] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)  # up to that of the last document

    def document(self, number: str, runs: list[Run], currency: str, *, plain: bool = False) -> Settled:
        """Work out the document of the last of these runs; a plain one as it was before there were accounts."""
        run = runs[-1]
        voided = self.account.voided(run)
        history = History(replaced={name for _, settled in self.done for name in settled.replaces})
        billed: list[Line] = []
        for name, settled in self.done:
            if name not in voided:
                settled.note_in(history, name)
                billed += settled.lines
        bills = self._bill(billed, runs, currency)
        if plain:
            made = as_before_accounts(bills)
        else:
            made = settle(bills, run=run, account=self.account, history=history)
        self.done.append((number, made))
        self.runs = runs
        return made

    def _bill(self, billed: list[Line], runs: list[Run], currency: str) -> Bills:
        """Apply the one rule to every license, by the limits of the last of these runs."""
        run = runs[-1]
        records, spans = self._by_license(run)
        before, conceded = billed_before(billed), self.account.conceded(run)
        lines: list[Line] = []
        beside: list[Beside] = []
        for each in (terms.known_at(run) for terms in self.terms):
            name = each.license_id
            fleet = self.proven.fleet(name)
            closed = closed_by(each, runs, fleet)
            gaps = estimates.gaps(each, closed, run, fleet)
            calendar = Calendar(each.periods, each.ends_at)
            own = records.get(name, ())
            made = invoices.bill(
                each,
                gather(calendar, run, own, spans.get(name, ()), deadlines(each, closed, run)),
                of_license(before, name),
                runs,
                closed=closed,
                estimated=self._estimated(name, gaps, estimates.count(gaps, calendar, run, own), run),
                conceded=of_license(conceded, name),
                disputed=self.account.disputed(run),
            )
            lines += (line for line in made.lines if line.currency == currency)
            beside += made.beside
        return Bills(lines=tuple(sorted(lines, key=lambda line: line.key)), beside=tuple(sorted(beside)))

    def _estimated(self, license_id: str, gaps: Sequence[Gap], counted: estimates.Counted, run: Run) -> Estimates:
        """What is estimated of the devices that are missing, at most what their tokens and batches leave open."""
        exposed: dict[tuple[str, Meter], int | None] = {}
        for device in {gap.device for gap in gaps}:
            given = (t for t in self.proven.tokens if (t.device, t.license_id) == (device, license_id))
            replay = self.proven.replays.get(device, Replay(device))
            for meter, most in exposure.of_device(given, replay, run).items():
                exposed[device, meter] = most
        return estimates.estimate(gaps, counted, exposed)

    def _by_license(self, run: Run) -> tuple[dict[str, list[Record]], dict[str, list[TokenSpan]]]:
        records: dict[str, list[Record]] = {}
        for record in self.proven.records(run):
            records.setdefault(record.license_id, []).append(record)
        spans: dict[str, list[TokenSpan]] = {}
        for span in self.proven.spans():
            spans.setdefault(span.license_id, []).append(span)
        return records, spans
