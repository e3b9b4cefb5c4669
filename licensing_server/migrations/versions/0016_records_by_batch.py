"""A usage record's device is its batch's: on PostgreSQL it is not looked up once more for each record.

Revision ID: 0016
"""

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Take the foreign key away; SQLite keeps it, for it could only lose it by copying every record."""
    if op.get_context().dialect.name == "postgresql":
        op.drop_constraint("usage_records_device_fkey", "usage_records", type_="foreignkey")
