"""The documents of a customer, one after another, worked out anew from what its evidence proves (BILLING §3)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from meterkit import invoices
from meterkit.accounts import Account, History
from meterkit.attribution import Calendar, Record, Run, TokenSpan, Usage, gather
from meterkit.documents import Bills, Settled, as_before_accounts, settle
from meterkit.invoices import Terms
from meterkit.lines import Beside, Line, billed_before, of_license
from meterkit.proof import Proven


@dataclass(slots=True, kw_only=True)
class Recomputation:
    """What is known of a customer, and the documents that were worked out of it so far, in the order of runs."""

    terms: Sequence[Terms]
    proven: Proven
    account: Account
    done: list[tuple[str, Settled]] = field(default_factory=list)

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
        return made

    def _bill(self, billed: list[Line], runs: list[Run], currency: str) -> Bills:
        """Apply the one rule to every license, by the limits of the last of these runs."""
        run = runs[-1]
        usage = self._usage(run)
        before, conceded = billed_before(billed), self.account.conceded(run)
        lines: list[Line] = []
        beside: list[Beside] = []
        for each in self.terms:
            made = invoices.bill(
                each.known_at(run),
                usage[each.license_id],
                of_license(before, each.license_id),
                runs,
                conceded=of_license(conceded, each.license_id),
                disputed=self.account.disputed(run),
            )
            lines += (line for line in made.lines if line.currency == currency)
            beside += made.beside
        return Bills(lines=tuple(sorted(lines, key=lambda line: line.key)), beside=tuple(sorted(beside)))

    def _usage(self, run: Run) -> dict[str, Usage]:
        records: dict[str, list[Record]] = {}
        for record in self.proven.records(run):
            records.setdefault(record.license_id, []).append(record)
        tokens: dict[str, list[TokenSpan]] = {}
        for token in self.proven.spans():
            tokens.setdefault(token.license_id, []).append(token)
        found = {}
        for each in (terms.known_at(run) for terms in self.terms):
            calendar = Calendar(each.periods, each.ends_at)
            own, theirs = records.get(each.license_id, ()), tokens.get(each.license_id, ())
            found[each.license_id] = gather(calendar, run, own, theirs)
        return found
