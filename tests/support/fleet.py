"""A fleet without the device SDK: real keys, real chains, real signed batches, and a server beside them.

`Fleet` holds one server in a temporary directory under a clock that only the test moves. `FakeDevice` says
whatever a device could say, the wrong things too.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import sqlalchemy as sa
from click.testing import CliRunner

from licensing_server import directory
from licensing_server.catalog import service as catalog
from licensing_server.cli import cli
from licensing_server.customers import service as customers
from licensing_server.database import read
from licensing_server.devices import service as devices
from licensing_server.licenses import service as licenses
from licensing_server.pages import Page
from licensing_server.settings import DATABASE_FILE, DATABASE_URL, Settings
from licensing_server.usage import service as usage
from meterkit import activation, envelopes, ids, ledger, limits, signing, tokens
from meterkit.canonical import from_bytes, sha256_hex, to_base64url
from meterkit.exchange import Batch, Has, Reply
from meterkit.keys import Keyring, SigningKey
from meterkit.licenses import Policy
from meterkit.positions import Position
from meterkit.receipts import Receipt, open_receipt
from meterkit.tokens import Token
from meterkit.usage import UsageRecord, genesis, token_installed

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result
    from postgresql import Cluster

    from licensing_server.server import Server
    from meterkit.ledger import Entry

START_S = 1_767_225_600  # 2026-01-01T00:00:00Z
BOOT = "0f9e4c1a-4a54-4f10-9c4b-0a35b6f4e1d2"
PRODUCT = "camera"
MODEL = "detector"
DIGEST = sha256_hex(b"a model")
PLAN = {
    "v": 1,
    "currency": "EUR",
    "interval": "month",
    "charges": [
        {
            "id": "calls",
            "type": "usage",
            "meter": {"model": MODEL, "unit": "call"},
            "price": {"model": "per_unit", "unit_amount": "0.01"},
        }
    ],
}


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now: int = START_S) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: int) -> int:
        self.now += seconds
        return self.now


class Random:
    """Random bytes from a seed, so that a failing test fails again."""

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)  # noqa: S311 - a test's, on purpose

    def __call__(self, count: int) -> bytes:
        return self._random.randbytes(count)


def _wait_for_no_disk(connection: sqlite3.Connection, _: object) -> None:
    connection.execute("PRAGMA synchronous=OFF").close()


@dataclass
class Fleet:
    """One server with a catalog, a customer and a plan, and the means to grant and to make devices."""

    server: Server
    clock: Clock
    random: Random
    made: directory.Initialized
    settings: Settings
    cluster: Cluster | None = None  # of PostgreSQL, where the server uses it
    database: str = ""
    customer: str = ""
    plan: str = ""
    compiled: dict[Any, Any] = field(default_factory=dict)  # statements: copies share what costs most tests most

    @classmethod
    def start(
        cls,
        path: Path,
        *,
        cluster: Cluster | None = None,
        issuer: str = "Example Vision",
        seed: int = 1,
        now: int = START_S,
    ) -> Fleet:
        clock, randomness = Clock(now), Random(seed)
        database = cluster.create() if cluster else ""
        url = cluster.url(database) if cluster else None
        settings = Settings(directory=path / "server", postgresql_url=url)
        made = directory.init(
            settings.directory, issuer=issuer, postgresql_url=url, clock=clock, random=randomness
        )
        server = directory.open_server(settings, clock=clock, random=randomness)
        fleet = cls(
            server=server,
            clock=clock,
            random=randomness,
            made=made,
            settings=settings,
            cluster=cluster,
            database=database,
        )
        catalog.create_product(server, name=PRODUCT)
        catalog.create_model(server, product=PRODUCT, name=MODEL, unit="call", axis=None, sha256=[DIGEST])
        fleet.customer = customers.create(server, name="ACME", time_zone="Europe/Berlin")["id"]
        fleet.plan = catalog.create_plan(server, name="standard", body=PLAN)["id"]
        return fleet

    def copy(self, path: Path, *, seed: int, durable: bool = False) -> Self:
        """The same server in another directory, with a clock of its own, and randomness that repeats nothing.

        Unless it is to be durable, it waits for no disk: what it commits outlives its process, not a power cut.
        """
        shutil.copytree(self.server.directory, path / "server")
        clock, randomness = Clock(self.clock.now), Random(seed)
        database = self.cluster.create(self.database) if self.cluster else ""
        url = self.cluster.url(database) if self.cluster else None
        settings = Settings(directory=path / "server", postgresql_url=url)
        server = self.open(settings, clock=clock, random=randomness)
        if not durable and not self.cluster:
            sa.event.listen(server.engine, "connect", _wait_for_no_disk)
        return replace(self, server=server, clock=clock, random=randomness, settings=settings, database=database)

    def open(self, settings: Settings, *, clock: Clock, random: Random) -> Server:
        """Open a server on a database of this kind, which takes statements as they were compiled for another."""
        server = directory.open_server(settings, clock=clock, random=random)
        server.engine.dialect = self.server.engine.dialect
        server.engine.update_execution_options(compiled_cache=self.compiled)
        return server

    def invoke(self, *arguments: object) -> Result:
        """Run a command of `meterkit-server` on it."""
        flags = ["--directory", str(self.server.directory)]
        return CliRunner().invoke(cli, [*flags, *map(str, arguments)], env=self.environment)

    def stored(self) -> bytes:
        """Everything that its database holds, as text: to look for what must not be there."""
        with read(self.server) as connection:
            names = sa.inspect(connection).get_table_names()
            rows = [connection.exec_driver_sql(f"SELECT * FROM {name}").fetchall() for name in names]  # noqa: S608
        return repr(rows).encode()

    def empty_database(self) -> None:
        """A database is there, and holds nothing."""
        self.lose_database()
        if self.cluster:
            self.cluster.create(name=self.database)
        else:
            (self.server.directory / DATABASE_FILE).touch(0o600)

    def lose_database(self) -> None:
        """It is gone, as when a disk is, or a machine."""
        self.close()
        if self.cluster:
            self.cluster.drop(self.database)
        else:
            (self.server.directory / DATABASE_FILE).unlink()

    def take_backup(self) -> str:
        """Keep a copy of the database as it is now, until the cluster or the directory goes; give its name."""
        self.close()
        if self.cluster:
            return self.cluster.create(self.database)
        backup = self.server.directory / "backup"
        shutil.copyfile(self.server.directory / DATABASE_FILE, backup)
        return str(backup)

    def put_back(self, backup: str) -> None:
        """Have the database as it was when a backup was taken."""
        self.lose_database()
        if self.cluster:
            self.cluster.create(backup, name=self.database)
        else:
            shutil.copyfile(backup, self.server.directory / DATABASE_FILE)

    def close(self) -> None:
        """Close its connections; it can be copied."""
        self.server.engine.dispose()

    def remove(self) -> None:
        """Close it, and drop its database. The directory is its maker's."""
        self.close()
        if self.cluster:
            self.cluster.drop(self.database)

    @property
    def environment(self) -> dict[str, str]:
        """What a process of this server needs to find its database."""
        url = self.settings.postgresql_url
        return {**os.environ, **({DATABASE_URL: url} if url else {})}

    def grant(self, **changed: Any) -> str:
        """Grant a license; give its id."""
        model = {"name": MODEL, "token_units_max": 1_000_000, "pool_units": None, "pool_per": "license"}
        model |= {
            name: changed.pop(name) for name in ("token_units_max", "pool_units", "pool_per") if name in changed
        }
        terms = licenses.Terms(
            **{
                "customer": self.customer,
                "plan": self.plan,
                "product": PRODUCT,
                "models": (model,),
                "devices_max": 10,
                "token_life_s": limits.TOKEN_LIFE_S,
                "grace_s": limits.GRACE_S,
                "policy": Policy(),
                "fork_policy": "flag",
                "features": (),
                **changed,
            }
        )
        return str(licenses.grant(self.server, terms)["id"])

    def code(self, license_id: str, **changed: Any) -> str:
        """Make an activation code; give its text."""
        return str(licenses.create_code(self.server, license_id, **changed)["code"])

    def device(self, license_id: str | None = None) -> FakeDevice:
        """Make a device; activated, with its first token installed, if a license is named."""
        device = FakeDevice.make(self)
        if license_id is not None:
            device.activate(self.code(license_id))
            device.install()
        return device

    def exchange(self, *texts: str) -> Reply:
        return usage.exchange(self.server, list(texts))

    def keyring(self) -> Keyring:
        return self.server.keyring

    def units(self, license_id: str) -> int:
        """What the server says was used of the one meter."""
        items = usage.sum_usage(self.server, license_id=license_id)["items"]
        return int(sum(item["units"] for item in items))

    def exceptions(self, kind: str | None = None) -> list[dict[str, Any]]:
        items = usage.page_exceptions(self.server, Page(limit=200))["items"]
        return [item for item in items if kind in (None, item["kind"])]


@dataclass
class FakeDevice:
    """A device's keys and ledger. Its entries are kept whole, so that any batch can be made of them again."""

    fleet: Fleet
    key: SigningKey
    epoch: str
    entries: list[Entry] = field(default_factory=list)
    token: Token | None = None
    reply: Reply | None = None
    receipt: str | None = None
    serial: int = 0
    cell: str = ""
    count: int = 0

    @classmethod
    def make(cls, fleet: Fleet) -> FakeDevice:
        key = SigningKey(fleet.random(32))
        epoch = ids.make("ep", fleet.random(16))
        return cls(fleet=fleet, key=key, epoch=epoch, cell=ids.make("cel", fleet.random(16)))

    @property
    def id(self) -> str:
        return f"dev_{self.key.kid}"

    @property
    def position(self) -> Position:
        return self.at(len(self.entries))

    def at(self, seq: int) -> Position:
        """Its ledger's position at a sequence number."""
        return (
            Position(epoch=self.epoch, seq=seq, head=self.entries[seq - 1].hash)
            if seq
            else Position(epoch=self.epoch)
        )

    def clone(self) -> FakeDevice:
        """A second device with the same key and the same ledger so far: a copied image. Its cell is new."""
        return replace(self.live_copy(), cell=ids.make("cel", self.fleet.random(16)), count=0)

    def live_copy(self) -> FakeDevice:
        """A second device that counts on in the same cell: what a copied machine is whose process lives on."""
        return replace(self, entries=list(self.entries))

    # -- activation

    def request(self, code: str, **changed: Any) -> str:
        """An activation request, signed."""
        read = activation.read_code(code)
        request = activation.ActivationRequest(
            **{
                "product": PRODUCT,
                "code_id": read.id,
                "proof": activation.proof(read.secret, self.id),
                "sign_key": self.key.verify_key,
                "seal_key": to_base64url(self.fleet.random(32)),
                "position": self.position,
                "license_hint": None,
                "capabilities": {
                    "v": {"token": 1},
                    "sdk": "0.1.0",
                    "runtime": "1.24",
                    "platform": "linux",
                    "hints": [],
                },
                "made_at": self.fleet.clock.now,
                "nonce": to_base64url(self.fleet.random(16)),
                **changed,
            }
        )
        return signing.sign(envelopes.ACTIVATION, request.to_claims(), self.key)

    def activate(self, code: str, **changed: Any) -> Reply:
        reply = devices.activate(self.fleet.server, self.request(code, **changed))
        self.take(reply)
        return reply

    def take(self, reply: Reply) -> Reply:
        """Keep what a reply brings."""
        self.reply = reply
        if reply.token is not None:
            self.token = self.open_token(reply.token)
            self.serial = self.token.serial
        if reply.receipts:
            self.receipt = reply.receipts[-1]
        return reply

    def open_token(self, text: str) -> Token:
        server = self.fleet.server
        _, claims = envelopes.open_claims(
            envelopes.TOKEN,
            text,
            keyring=server.keyring,
            addressee=envelopes.Addressee(issuer=server.issuer, product=PRODUCT, device=self.id),
            shape=tokens.shape,
        )
        return Token.from_claims(claims)

    def open_receipt(self, text: str) -> Receipt:
        server = self.fleet.server
        addressee = envelopes.Addressee(issuer=server.issuer, product=PRODUCT, device=self.id)
        return open_receipt(text, keyring=server.keyring, addressee=addressee)

    # -- ledger

    def append(self, members: dict[str, Any], *, time: int | None = None) -> Entry:
        at = self.fleet.clock.now if time is None else time
        entry = ledger.append(self.position, members, time=at, boot=BOOT)
        self.entries.append(entry)
        return entry

    def begin(self, *, previous: Position | None = None, lost: tuple[int, int] | None = None) -> None:
        """Write the genesis, if there is none yet."""
        if not self.entries:
            self.append(genesis(epoch=self.epoch, device=self.id, previous=previous, lost=lost))

    def reset(self, *, lost: tuple[int, int] | None = None) -> None:
        """Set the ledger aside and start a new epoch that names the old position."""
        previous = self.position
        self.epoch = ids.make("ep", self.fleet.random(16))
        self.entries = []
        self.begin(previous=previous, lost=lost)

    def install(self, token: Token | None = None, **changed: Any) -> None:
        """Write the record of the token that is now installed."""
        self.begin()
        installed = token or self.token
        if installed is None:
            raise RuntimeError("no token to install")
        members = token_installed(
            jti=installed.jti,
            serial=installed.serial,
            iat=installed.iat,
            license_id=installed.license_id,
            anchor=installed.anchor,
        )
        self.append({**members, **changed})

    def use(self, units: int = 1, *, at: int | None = None, **changed: Any) -> Entry:
        """Write a usage record for the window that holds an instant."""
        if self.token is None:
            raise RuntimeError("no token")
        at = self.fleet.clock.now if at is None else at
        record = UsageRecord(
            **{
                "seq": len(self.entries) + 1,
                "time": at,
                "boot": BOOT,
                "window": at // limits.WINDOW_S,
                "provisional": False,
                "license_id": self.token.license_id,
                "token": self.token.jti,
                "model": MODEL,
                "digest": DIGEST,
                "unit": "call",
                "units": units,
                "unsettled": 0,
                "flags": (),
                "cell": self.cell,
                "count_from": self.count,
                "count_to": self.count + units,
                **changed,
            }
        )
        self.count += units
        claims = record.to_claims()
        members = {name: value for name, value in claims.items() if name not in ("v", "seq", "time", "boot")}
        return self.append(members, time=at)

    # -- exchange

    def batch(self, first: int | None = None, last: int | None = None, **changed: Any) -> str:
        """A signed batch of the records from `first` to `last`; by default all that no receipt covers."""
        last = len(self.entries) if last is None else last
        if first is None:
            first = 1
            if self.receipt is not None:
                covered = self.open_receipt(self.receipt).position
                own = covered.epoch == self.epoch and covered.seq <= len(self.entries)  # a copy may be further
                first = covered.seq + 1 if own else 1
        batch = Batch(
            **{
                "product": PRODUCT,
                "license_id": self._license_of(last),
                "epoch": self.epoch,
                "seq_from": first,
                "prev": self.at(first - 1).head,
                "seq_to": last,
                "head": self.at(last).head if last >= first else self.at(first - 1).head,
                "through": self.fleet.clock.now,
                "made_at": self.fleet.clock.now,
                "has": Has(serial=self.serial, keyring=1, revocations=0, receipt=self.receipt),
                "bodies": tuple(entry.body for entry in self.entries[first - 1 : last]),
                **changed,
            }
        )
        return signing.sign_payload(envelopes.BATCH, batch.to_payload(), self.key)

    def _license_of(self, last: int) -> str | None:
        named = [entry.claims["license"] for entry in self.entries[:last] if entry.claims["kind"] == "token"]
        return named[-1] if named else None

    def sync(self, **changed: Any) -> Reply:
        """Hand over what is not receipted yet, and keep what comes back."""
        return self.take(self.fleet.exchange(self.batch(**changed)))


class Api:
    """The vendor's API over HTTP, asked with one key."""

    def __init__(self, client: Any, key: str) -> None:
        self.client = client
        self.headers = {"authorization": f"Bearer {key}"}

    def get(self, path: str, *, expect: int = 200, **params: Any) -> Any:
        return self._judged(self.client.get(path, params=params, headers=self.headers), expect)

    def post(self, path: str, body: Any = None, *, expect: int = 201, **headers: str) -> Any:
        sent = {"json": body} if body is not None else {}
        return self._judged(self.client.post(path, headers=self.headers | headers, **sent), expect)

    def _judged(self, answer: Any, expect: int) -> Any:
        assert answer.status_code == expect, answer.text
        return answer.json()


def claims_of(kind: envelopes.Kind, text: str) -> dict[str, Any]:
    """Read what an envelope says, without asking who signed it."""
    claims = from_bytes(envelopes.unverified_parts(kind, text).payload, bytes_max=kind.bytes_max)
    if not isinstance(claims, dict):
        raise TypeError("not an object")
    return claims
