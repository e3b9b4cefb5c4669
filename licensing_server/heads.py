"""HTTP as `serve` speaks it: uvicorn's fast parser, with the bound on a request's head that it does not have.

What is awaited of a head is kept in memory, and a peer may go on with it for ever.
"""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES_MAX = 64 * 1024


class BoundedHeads(HttpToolsProtocol):
    """One connection. A head that is too large is answered with 400, and ends it.

    A piece of what comes is taken whole: the bound is so many bytes more.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_in_head = False
        self._head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Take what has come next."""
        if self._is_in_head:
            self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES_MAX:
            self.send_400_response("Request head too large.")
            return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A head begins."""
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A head has ended."""
        self._is_in_head, self._head_bytes = False, 0
        super().on_headers_complete()
