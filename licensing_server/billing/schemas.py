"""What is asked of billing."""

from licensing_server.schemas import Body, CustomerId, Seconds


class NewRun(Body):
    """A billing run: up to when (now, if not said), for whom (everyone), and whether only to look."""

    cut_off: Seconds | None = None
    customer: CustomerId | None = None
    dry_run: bool = False
