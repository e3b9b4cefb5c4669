"""What is asked of usage."""

from licensing_server.schemas import Body, Text


class Resolution(Body):
    """How an exception was resolved."""

    how: Text
