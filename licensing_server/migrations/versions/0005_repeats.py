"""Units that several branches of a ledger tell of.

Revision ID: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Note on records how many of their units another branch told of; `rebuild` finds them in older ones."""
    op.add_column("usage_records", sa.Column("repeated", sa.BigInteger(), nullable=False, server_default="0"))
