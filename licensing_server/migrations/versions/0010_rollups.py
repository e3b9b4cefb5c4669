"""What is added up of usage as it comes in, in spans of time; nothing is yet, the next billing run adds it up.

Revision ID: 0010
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_ODD = "quarantined IS {true} OR repeated > 0 OR dismissed_run IS NOT NULL"


def upgrade() -> None:
    """Create both tables, and indexes of what is odd among records, and of how far each ledger is accepted."""
    op.create_table(
        "license_spans",
        sa.Column("license", sa.Text(), nullable=False),
        sa.Column("start_at", sa.BigInteger(), nullable=False),
        sa.Column("end_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("license", "start_at"),
    )
    names = ("units", "unsettled", "seq_first", "seq_last", "service_first", "service_last", "acceptance_last")
    op.create_table(
        "usage_rollups",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("device", "epoch", "license", "model", "unit")),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("start_at", *names)),
        sa.PrimaryKeyConstraint("device", "epoch", "license", "model", "unit", "start_at"),
    )
    op.create_index("rollups_by_license", "usage_rollups", ["license", "start_at"], unique=False)
    _index("usage_odd", "usage_records", ["license"], _ODD)
    op.drop_index("heads_tips", "heads")
    _index("heads_tips", "heads", ["device", "epoch", "seq", "head", "acceptance"], "is_tip IS {true}")


def _index(name: str, table: str, columns: list[str], where: str) -> None:
    """Index some rows of a table alone. SQLite takes such an index where it reads the condition as written."""
    true = "1" if op.get_bind().dialect.name == "sqlite" else "true"
    condition = sa.text(where.format(true=true))
    op.create_index(name, table, columns, unique=False, sqlite_where=condition, postgresql_where=condition)
