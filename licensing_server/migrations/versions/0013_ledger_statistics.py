"""Tell PostgreSQL how many ledgers and meters there are: it takes ten times as many for granted, and would then
add up all usage in one process.

Revision ID: 0013
"""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """SQLite has no such statistics, and no use for them."""
    if op.get_bind().dialect.name == "postgresql":
        columns = "device, epoch, license, model, unit"
        op.execute(f"CREATE STATISTICS usage_records_ledgers (ndistinct) ON {columns} FROM usage_records")
        op.execute(f"ANALYZE usage_records ({columns})")
