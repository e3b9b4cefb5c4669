"""The audit log, and decisions about exceptions.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the audit log and the decisions, and note on records what they change."""
    _create_audit_log()
    _create_decisions()
    for name, kind in (
        ("quarantined_for", sa.Text()),
        ("released_run", sa.BigInteger()),
        ("dismissed_run", sa.BigInteger()),
    ):
        op.add_column("usage_records", sa.Column(name, kind, nullable=True))
    for name in ("outcome", "owner", "note"):
        op.add_column("exceptions", sa.Column(name, sa.Text(), nullable=True))


def _create_audit_log() -> None:
    op.create_table(
        "audit_log",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("prev", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index(op.f("ix_audit_log_subject"), "audit_log", ["subject"], unique=False)


def _create_decisions() -> None:
    op.create_table(
        "exception_decisions",
        sa.Column("exception", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("since_run", sa.BigInteger(), nullable=True),
        sa.Column("branch_seq", sa.BigInteger(), nullable=True),
        sa.Column("branch_head", sa.Text(), nullable=True),
        sa.Column("acceptance", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["exception"], ["exceptions.id"]),
        sa.PrimaryKeyConstraint("exception", "number"),
    )
