"""What is asked of webhook endpoints."""

from typing import Annotated

from licensing_server.schemas import Body, Text, shaped
from licensing_server.webhook_endpoints.addresses import URL_CHARS_MAX
from meterkit import shapes


class NewEndpoint(Body):
    """A new endpoint: where it is, and of what it is told."""

    url: Annotated[str, shaped(shapes.text(URL_CHARS_MAX))]
    events: list[Text]
