"""Invoices that prepaid credits and the balance have met whole are paid.

Revision ID: 0012
"""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Say so of those that became final before; nothing was to be collected on them."""
    op.execute(
        "UPDATE invoices SET state = 'paid' WHERE state = 'finalized' AND kind = 'invoice' AND due_minor = 0"
    )
