"""HTTP as `serve` speaks it: uvicorn's fast parser, with the bound on a request's head that it does not have.

What is awaited of a head is kept in memory, and a peer may go on with it for ever.
"""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES_MAX = 64 * 1024


class BoundedHeads(HttpToolsProtocol):
    """One connection. A head, or what follows a body in chunks, ends it with a 400 where it is too large.

    A piece of what comes is taken whole: the bound is so much more. Fields behind a body are passed over.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_in_head = False
        self._kept_bytes = 0  # that have come since a head was whole, or some of a body

    def data_received(self, data: bytes) -> None:
        """Take what has come next."""
        self._kept_bytes += len(data)
        if self._kept_bytes > HEAD_BYTES_MAX + len(data):
            self.send_400_response("Request head too large.")
            return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A head begins."""
        self._is_in_head, self._kept_bytes = True, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field is whole."""
        if self._is_in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """A head has ended."""
        self._is_in_head, self._kept_bytes = False, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of a body is there."""
        self._kept_bytes = 0
        super().on_body(body)
