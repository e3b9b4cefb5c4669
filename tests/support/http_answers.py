"""A real HTTP server that answers as a test says, and what it may answer."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPLY = "application/json"
HTML = "text/html; charset=utf-8"


class Server:
    """A real HTTP server on this machine. `answers` are given one after another; the last one stays."""

    def __init__(self) -> None:
        self.answers: list = []
        self.requests: list[tuple[str, str, dict, bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                outer.requests.append((self.command, self.path, dict(self.headers.items()), body))
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                answer(self, body)

            do_GET = do_POST  # noqa: N815 - the name is the library's

            def log_message(self, *_args) -> None:
                """Say nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def plain(status: int, kind: str | None, body: bytes, **headers):
    def answer(handler, _body) -> None:
        handler.send_response(status)
        if kind is not None:
            handler.send_header("content-type", kind)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def made(kind: str, make):
    """A good answer, made from what was sent."""

    def answer(handler, body) -> None:
        plain(200, kind, make(body))(handler, body)

    return answer


def hangs_up(handler, _body) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
