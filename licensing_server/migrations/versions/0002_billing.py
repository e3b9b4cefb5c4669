"""Billing: periods, runs, invoices.

Revision ID: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create billing's tables."""
    _create_runs()
    _create_invoices()


def _create_runs() -> None:
    """What runs are bounded by, and whom each has billed already."""
    op.create_table(
        "billing_runs",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("cut_off", sa.BigInteger(), nullable=False),
        sa.Column("acceptance_max", sa.BigInteger(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("scope", "cut_off", name="billing_runs_once"),
    )
    op.create_table(
        "license_periods",
        sa.Column("license", sa.Text(), nullable=False),
        sa.Column("interval", sa.Text(), nullable=False),
        sa.Column("start_at", sa.BigInteger(), nullable=False),
        sa.Column("end_at", sa.BigInteger(), nullable=False),
        sa.Column("nth", sa.Integer(), nullable=False),
        sa.Column("whole_start_at", sa.BigInteger(), nullable=False),
        sa.Column("whole_end_at", sa.BigInteger(), nullable=False),
        sa.Column("since_run", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("license", "interval", "start_at"),
    )
    op.create_table(
        "billing_run_customers",
        sa.Column("run", sa.BigInteger(), nullable=False),
        sa.Column("customer", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["customer"],
            ["customers.id"],
        ),
        sa.ForeignKeyConstraint(
            ["run"],
            ["billing_runs.number"],
        ),
        sa.PrimaryKeyConstraint("run", "customer"),
    )


def _create_invoices() -> None:
    """Documents as they are kept, and the lines by which what was billed before is summed."""
    op.create_table(
        "invoices",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("customer", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("run", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("number", sa.Text(), nullable=True),
        sa.Column("total_minor", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("finalized_at", sa.BigInteger(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("evidence", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(
            ["customer"],
            ["customers.id"],
        ),
        sa.ForeignKeyConstraint(
            ["run"],
            ["billing_runs.number"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("customer", "currency", "run", name="invoices_once"),
        sa.UniqueConstraint("number"),
    )
    op.create_index(
        "invoices_one_draft",
        "invoices",
        ["customer", "currency"],
        unique=True,
        sqlite_where=sa.text("state = 'draft'"),
        postgresql_where=sa.text("state = 'draft'"),
    )
    op.create_index(op.f("ix_invoices_customer"), "invoices", ["customer"], unique=False)
    op.create_table(
        "invoice_lines",
        sa.Column("invoice", sa.Text(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("license", sa.Text(), nullable=False),
        sa.Column("start_at", sa.BigInteger(), nullable=False),
        sa.Column("end_at", sa.BigInteger(), nullable=False),
        sa.Column("charge", sa.Text(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("quantity_change", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["invoice"],
            ["invoices.id"],
        ),
        sa.PrimaryKeyConstraint("invoice", "place"),
    )
    op.create_index(op.f("ix_invoice_lines_license"), "invoice_lines", ["license"], unique=False)
