"""What a run finds of licenses whose usage is not added up yet: one pass over the records, by license alone.

To add up the usage of a whole fleet ledger by ledger takes longer than to bill it. So the first run after an
upgrade takes its own sums, good for that run alone, and bills by them; what is added up as usage comes in
(`usage.rollups`) is worked out when its drafts stand (`add_up`). Until then the spans of such a license name the
run (`only_run`), and nothing is added to them.
"""

import sqlalchemy as sa

from licensing_server.database import add_to, metadata, total
from licensing_server.licenses import spans
from licensing_server.licenses.spans import Cuts, license_spans
from licensing_server.usage import rollups
from licensing_server.usage.rollups import HOLDS
from licensing_server.usage.store import ODD, usage_records
from meterkit.attribution import Run

_AT_ONCE = 200  # licenses: nothing else is written while they are added up

run_sums = sa.Table(
    "run_sums",
    metadata,
    sa.Column("license", sa.Text, primary_key=True),
    sa.Column("start_at", sa.BigInteger, primary_key=True),  # of the span
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("unit", sa.Text, primary_key=True),
    sa.Column("units", sa.BigInteger, nullable=False),
    sa.Column("unsettled", sa.BigInteger, nullable=False),
)
_RECORD, _SPAN = usage_records.c, license_spans.c
_PLACE = (_RECORD.license, _SPAN.start_at, _RECORD.model, _RECORD.unit)


def take(connection: sa.Connection, cuts: Cuts, run: Run) -> None:
    """Let the spans of licenses begin where they are cut, and add up what the run may know of their plain records.

    What other runs took is gone: they add up what they still need.
    """
    connection.execute(sa.delete(run_sums))
    spans.disown(connection, _SPAN.only_run != run.number)
    spans.put(connection, cuts, only_run=run.number)
    known = sa.and_(_RECORD.service_at < run.cut_off, _RECORD.acceptance <= run.acceptance_max)
    mine = sa.and_(_SPAN.only_run == run.number, _SPAN.start_at < run.cut_off, sa.not_(ODD), known)
    units = total(_RECORD.units).label("units"), total(_RECORD.unsettled).label("unsettled")
    sums = sa.select(*_PLACE, *units).join_from(usage_records, license_spans, HOLDS).where(mine).group_by(*_PLACE)
    add_to(connection, run_sums, sums, {"units": "+", "unsettled": "+"}, many=True)


def add_up(connection: sa.Connection) -> bool:
    """Add up the usage of some licenses whose usage is not yet; tells whether there may be more of them."""
    chosen = sa.select(_SPAN.license).where(_SPAN.only_run.is_not(None)).distinct().limit(_AT_ONCE)
    some = list(connection.execute(chosen).scalars())
    spans.begin(connection, some)
    rollups.add_up(connection, some)
    connection.execute(sa.delete(run_sums).where(run_sums.c.license.in_(some)))
    return len(some) == _AT_ONCE
