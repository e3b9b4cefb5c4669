"""What is asked of customers."""

from licensing_server.schemas import Body, Text


class NewCustomer(Body):
    """A new customer, and the IANA time zone in which its billing days begin."""

    name: Text
    time_zone: Text = "UTC"
