"""What was declared of devices, and when periods were cut shorter, as billing runs know it.

Revision ID: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create them. Devices that are retired, lost or replaced are known as such by every run."""
    op.create_table(
        "declarations",
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("since_run", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.id"]),
        sa.PrimaryKeyConstraint("number"),
    )
    op.add_column("license_periods", sa.Column("cut_run", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("license_periods", sa.Column("end_before", sa.BigInteger(), nullable=True))
    op.create_index(op.f("ix_declarations_device"), "declarations", ["device"], unique=False)
    gone = "FROM devices WHERE state IN ('retired', 'lost', 'replaced')"
    order = "(SELECT count(*) FROM devices AS before WHERE before.id <= devices.id"
    order += " AND before.state IN ('retired', 'lost', 'replaced'))"
    named = "CASE state WHEN 'lost' THEN 'lost' ELSE 'retired' END"
    op.execute(
        f"INSERT INTO declarations (number, device, state, since_run) SELECT {order}, id, {named}, 1 {gone}"
    )
    op.execute(f"INSERT INTO counters (name, value) SELECT 'declaration', count(*) {gone}")
