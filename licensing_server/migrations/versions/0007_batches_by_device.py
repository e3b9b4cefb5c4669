"""Key batches by their device first, as all of usage is: what partitions a database by device asks for that.

Revision ID: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_KEY = ["device", "acceptance"]


def upgrade() -> None:
    """Change the key: on PostgreSQL by building one index, on SQLite by copying the table, in order."""
    if op.get_bind().dialect.name == "postgresql":
        op.drop_constraint("batches_pkey", "batches", type_="primary")
        op.create_primary_key("batches_pkey", "batches", _KEY)
        return
    columns = _columns()
    names = ", ".join(column.name for column in columns)
    op.create_table(
        "batches_by_device",
        *columns,
        sa.ForeignKeyConstraint(["device"], ["devices.id"]),
        sa.PrimaryKeyConstraint(*_KEY),
    )
    op.execute(f"INSERT INTO batches_by_device ({names}) SELECT {names} FROM batches ORDER BY acceptance")  # noqa: S608
    op.drop_table("batches")
    op.rename_table("batches_by_device", "batches")
    op.create_index("batches_by_place", "batches", ["device", "epoch", "to_seq"], unique=False)


def _columns() -> list[sa.Column[object]]:
    return [
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("acceptance", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.Text(), nullable=False),
        sa.Column("from_seq", sa.BigInteger(), nullable=False),
        sa.Column("to_seq", sa.BigInteger(), nullable=False),
        sa.Column("prev", sa.Text(), nullable=False),
        sa.Column("head", sa.Text(), nullable=False),
        sa.Column("first_new", sa.BigInteger(), nullable=False),
        sa.Column("parent", sa.BigInteger(), nullable=True),
        sa.Column("license", sa.Text(), nullable=True),
        sa.Column("through", sa.BigInteger(), nullable=False),
        sa.Column("made_at", sa.BigInteger(), nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
    ]
