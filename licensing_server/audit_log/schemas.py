"""What is asked of the audit log."""

from licensing_server.schemas import Text

Filter = Text | None
