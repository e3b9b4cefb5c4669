"""What is asked of API keys."""

from licensing_server.schemas import Body, Seconds, Text


class NewApiKey(Body):
    """A new API key: what it is for, what it may do, and until when."""

    name: Text
    scopes: list[Text]
    expires_at: Seconds | None = None
