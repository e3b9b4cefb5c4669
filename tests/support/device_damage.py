"""Somebody else's hand on a device's ledger."""

import sqlite3

from device_site import Site


def raw(site: Site, sql: str, *values) -> list:
    """Somebody else's hand on the file."""
    connection = sqlite3.connect(site.path / "ledger.sqlite")
    try:
        found = connection.execute(sql, values).fetchall()
        connection.commit()
        return found
    finally:
        connection.close()


def set_body(site, seq: int, change) -> None:
    ((body,),) = raw(site, "SELECT body FROM records WHERE seq = ?", seq)
    raw(site, "UPDATE records SET body = ? WHERE seq = ?", change(body), seq)


def flip(body: bytes) -> bytes:
    at = len(body) // 2
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


def overwrite(site, at: int, data: bytes) -> None:
    with (site.path / "ledger.sqlite").open("r+b") as file:
        file.seek(at)
        file.write(data)
