"""What a run finds of licenses whose usage is not added up yet.

Revision ID: 0015
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create their table, and let spans say of which run alone their sums are: what is added up is of any."""
    op.create_table(
        "run_sums",
        sa.Column("license", sa.Text(), nullable=False),
        sa.Column("start_at", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("model", "unit")),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("units", "unsettled")),
        sa.PrimaryKeyConstraint("license", "start_at", "model", "unit"),
    )
    op.add_column("license_spans", sa.Column("only_run", sa.BigInteger(), nullable=True))
    op.create_index(
        "spans_of_runs",
        "license_spans",
        ["only_run"],
        unique=False,
        sqlite_where=sa.text("only_run IS NOT NULL"),
        postgresql_where=sa.text("only_run IS NOT NULL"),
    )
