"""Who receives webhooks: a real TLS server on this machine, with a certificate made for it."""

import datetime as dt
import ipaddress
import socket
import ssl
import threading
from contextlib import suppress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

OK = b"HTTP/1.1 204 No Content\r\n\r\n"


def certificate(*names: str) -> tuple[bytes, bytes]:
    """A certificate for some names, and its key: whoever trusts it trusts nobody else."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now = dt.datetime.now(tz=dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([_name(each) for each in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    return (
        made.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, form, plain),
    )


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


class Receiver:
    """Keeps what it was sent. `answers` are given one after another, the last one stays: bytes, or what to do."""

    def __init__(self, path, *names: str, address: str = "127.0.0.1", port: int = 0, like=None) -> None:
        self.certificate = path / f"certificate-{address}.pem"
        self.context = like.context if like else self._identify(path / f"key-{address}.pem", names)
        self.answers: list = [OK]
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connections = 0
        self._open: list[socket.socket] = []
        self._listening = socket.create_server((address, port))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _identify(self, key_path, names) -> ssl.SSLContext:
        cert, key = certificate(*(names or ("localhost",)))
        self.certificate.write_bytes(cert)
        key_path.write_bytes(key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, key_path)
        return context

    def url(self, path: str = "/hooks?of=meterkit", host: str = "localhost") -> str:
        return f"https://{host}:{self.port}{path}"

    def stop(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for each in self._open:
            each.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            with suppress(OSError):
                self._answer(plain)

    def _answer(self, plain) -> None:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer == "no handshake":
            self._open.append(plain)
            return
        with self.context.wrap_socket(plain, server_side=True) as connection:
            self.requests.append(_read(connection))
            if callable(answer):
                answer(connection)
            elif answer == "silence":
                self._open.append(connection)
                connection.settimeout(10)
                connection.recv(1)
            else:
                connection.sendall(answer)


def _read(connection) -> tuple[str, dict[str, str], bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(4_096)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(4_096)
    return first, headers, body


def answer(status: int, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
