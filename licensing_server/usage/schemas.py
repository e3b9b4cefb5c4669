"""What is asked of usage."""

from typing import Literal

from licensing_server.schemas import Body, Digest, Text


class Acknowledgment(Body):
    """Who looks at an exception, and what they noted."""

    owner: Text | None = None
    note: Text | None = None


class Resolution(Body):
    """How an exception was resolved: in words, and what that means for the sums."""

    how: Text
    outcome: Literal["closed", "bill_both", "dismiss_branch", "keep", "release"] | None = None
    branch: Digest | None = None


class Reopening(Body):
    """Why an exception is opened again."""

    how: Text
