"""Which billing run first knew the version of a plan that a license holds.

Revision ID: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Note it; every version that there is came with its license, and every run knew it."""
    op.add_column("license_versions", sa.Column("since_run", sa.BigInteger(), nullable=False, server_default="0"))
